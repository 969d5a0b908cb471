//! A large upload with five cuts: complete, verified, in little memory. `HONE_UPLOAD_MB` says how large (default 160);
//! `HONE_TEST_GATEWAY` names another gateway program, such as a release build (`make test-upload-20g`).

use crate::world::{Dice, Store};
use serde_json::json;
use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    net::TcpListener,
    time::Instant,
};
use testkit::fault::{Fault, Proxy, Rule, Target};
use wire::storage::UploadSession;

/// Bytes of memory the gateway may have had at any time, embedded S3 included.
const MEMORY_KIB: u64 = 64 << 10;
const CUTS: u32 = 5;

#[test]
fn an_upload_with_five_cuts_completes_verified_in_little_memory() {
    let mib: u64 = std::env::var("HONE_UPLOAD_MB").map_or(160, |text| text.parse().unwrap());
    let size = (mib << 20) + 7;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let proxy = runtime.block_on(Proxy::http(Target::Tcp(address.clone()), 1)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let limit = (size + 1).to_string();
    let settings = [("S3_LISTEN", address.as_str()), ("S3_PUBLIC_ENDPOINT", &proxy.url()), ("MODEL_MAX_BYTES", &limit)];
    let store = Store::start(dir, &settings);

    // Sparse: the client's copy costs no disk. Something different stands every few megabytes.
    let path = store.dir.path().join("source");
    let mut file = File::create(&path).unwrap();
    file.set_len(size).unwrap();
    let mut dice = Dice::new(7);
    for at in (0..size - 8).step_by(3 << 20) {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&dice.next(0..u64::MAX).to_le_bytes()).unwrap();
    }
    drop(file);
    let hidden = indicatif::ProgressBar::hidden();
    let sha256 = cli::transfer::sha256_file(&path, &hidden).unwrap();

    let begun = Instant::now();
    let open = json!({"key": "models/large/r/model.safetensors", "size": size, "kind": "model", "sha256": sha256});
    let session: UploadSession = serde_json::from_value(store.call("POST", "/uploads", &open)).unwrap();
    let parts = session.parts.len();
    assert!(parts > usize::try_from(CUTS).unwrap());
    let status = format!("/uploads/{}", session.id);
    // Each cut breaks one part in the middle, and a part is all that is sent again.
    let cut = session.part_size / 2;
    let every = parts / usize::try_from(CUTS).unwrap();
    let rule = |part| Rule::new(Fault::CutRequest(cut)).on(&format!("partNumber={part}&")).times(1);
    proxy.rules((0..CUTS).map(|n| rule(1 + usize::try_from(n).unwrap() * every)));
    let mut session = session;
    let mut sent = 0;
    while !session.parts.is_empty() {
        let before = proxy.requests();
        runtime.block_on(cli::transfer::put_parts(&session, &path, &hidden)).unwrap();
        sent += proxy.requests() - before;
        // Most often one round is enough; a large upload outlives its URLs.
        session = serde_json::from_value(store.call("GET", &status, &json!(null))).unwrap();
    }
    println!(
        "{parts} parts took {sent} requests, {} of them cut, in {:.1?}",
        proxy.injected("cut_request"),
        begun.elapsed()
    );
    assert_eq!(sent, u64::try_from(parts).unwrap() + proxy.injected("cut_request"), "a part is all that a cut costs");
    let done = store.call("POST", &format!("{status}/complete"), &json!({"sha256": sha256}));
    assert_eq!((&done["size"], &done["sha256"]), (&size.into(), &sha256.clone().into()));
    let uploaded = begun.elapsed();
    let verify = json!({"files": [{"key": "models/large/r/model.safetensors", "size": size, "sha256": sha256}]});
    store.call("POST", "/verify", &verify);
    let peak = store.peak_memory();
    println!(
        "{mib} MiB with {} cuts: complete and verified in {uploaded:.1?} ({} MB/s), verified again in {:.1?}; the \
         gateway's memory (VmHWM) was at most {} KiB",
        proxy.injected("cut_request"),
        size / 1000 / u64::try_from(uploaded.as_millis()).unwrap().max(1),
        begun.elapsed().saturating_sub(uploaded),
        peak,
    );
    assert_eq!(proxy.injected("cut_request"), u64::from(CUTS), "all cuts happened");
    assert!(peak <= MEMORY_KIB, "{peak} KiB");
}
