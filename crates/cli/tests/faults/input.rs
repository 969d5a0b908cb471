//! Rows 23 to 25: datasets and models that are poison. Nothing of them is kept.

use crate::{
    harness::Hone,
    material,
    world::{Dice, seeds},
};
use std::{fs, path::Path};
use wire::model::{CreateModel, ModelFile, revision};

const GOOD: &str = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;

fn upload(hone: &Hone, content: &[u8]) -> String {
    let path = hone.path("poison.jsonl");
    fs::write(&path, content).unwrap();
    let (code, message) = hone.fails(&["datasets", "upload", path.to_str().unwrap(), "--name", "poison"]);
    assert_eq!(code, 4, "{message}");
    message
}

/// Files below a prefix of the embedded S3, and parts of uploads that nobody finished.
fn stored(hone: &Hone, prefix: &str) -> Vec<String> {
    fn walk(dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => walk(&path, found),
                path => found.push(path.display().to_string()),
            }
        }
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(hone.data_dir().join("s3")).into_iter().flatten().flatten() {
        walk(&entry.path().join(prefix), &mut found);
    }
    found
}

#[test]
fn row_23_poison_in_a_dataset_is_located_and_nothing_of_it_is_kept() {
    let hone = Hone::started();
    for seed in seeds() {
        let mut dice = Dice::new(seed);
        let bad = usize::try_from(dice.next(1..200)).unwrap();
        let line = format!("line {}", bad + 1);
        let with = |poison: &[u8]| {
            let mut text = format!("{GOOD}\n").repeat(bad).into_bytes();
            text.extend_from_slice(poison);
            text.extend_from_slice(format!("\n{GOOD}\n").as_bytes());
            text
        };
        let utf8 = upload(&hone, &with(b"{\"messages\": \"\xff\xfe\"}"));
        assert!(utf8.contains(&line) && utf8.contains("UTF-8"), "{utf8}");
        let long = GOOD.replace('q', &"x".repeat(100_000_000));
        let long = upload(&hone, &with(long.as_bytes()));
        assert!(long.contains(&line) && long.contains("bytes"), "{long}");
        let empty = upload(&hone, b"");
        assert!(empty.contains("is empty"), "{empty}");
        let blank = upload(&hone, "\n".repeat(bad).as_bytes());
        assert!(blank.contains("no rows"), "{blank}");
        let many = usize::try_from(dice.next(21..500)).unwrap();
        let message = upload(&hone, format!("{GOOD}\n{}", "nonsense\n".repeat(many)).as_bytes());
        assert_eq!(message.matches("\n  line ").count(), 20, "{message}");
        assert!(message.contains(&many.to_string()), "the number of all errors: {message}");
        let listed = hone.json(&["datasets", "ls"]);
        assert!(listed.as_array().unwrap().iter().all(|d| d["status"] == "invalid"), "only the reports stay: {listed}");
        assert_eq!(stored(&hone, "datasets"), Vec::<String>::new());
    }
}

/// A zip archive of one entry of zeros, without compression in it being looked at by anybody.
fn zip(name: &str, size: u32) -> Vec<u8> {
    let mut bytes = b"PK\x03\x04\x14\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00".to_vec();
    bytes.extend(12_u32.to_le_bytes());
    bytes.extend(size.to_le_bytes());
    bytes.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
    bytes.extend([0, 0]);
    bytes.extend(name.bytes());
    bytes.extend([0x63; 12]);
    bytes
}

#[test]
fn row_24_archives_and_paths_that_climb_are_refused_and_nothing_is_written() {
    let hone = Hone::started();
    for seed in seeds() {
        let mut dice = Dice::new(seed);
        let name = ["../../etc/passwd", "/etc/passwd", "bomb.jsonl"][usize::try_from(dice.next(0..3)).unwrap()];
        let message = upload(&hone, &zip(name, u32::MAX));
        assert!(message.contains("is a zip archive; archives are not unpacked"), "{message}");
        let mut tar = vec![0; 512];
        tar[..4].copy_from_slice(b"../x");
        // A symbolic link.
        tar[156] = b'2';
        tar[257..262].copy_from_slice(b"ustar");
        let message = upload(&hone, &tar);
        assert!(message.contains("is a tar archive"), "{message}");
        let message = upload(&hone, &[0x1f, 0x8b, 8, 0, u8::try_from(dice.next(0..256)).unwrap()]);
        assert!(message.contains("is a gzip archive"), "{message}");
        assert_eq!(stored(&hone, "datasets"), Vec::<String>::new());

        for path in ["../config.json", "/etc/passwd", "a/../../b.safetensors", "a//b", ".hidden", "a\\b", ""] {
            let file = |path: &str| ModelFile { path: path.into(), size: 5, sha256: "0".repeat(64) };
            let files = vec![file("config.json"), file("model.safetensors"), file(path)];
            let body = CreateModel { name: "climbing".into(), files };
            let error = hone.with_api(async |api| api.create_model(&body).await).unwrap_err();
            assert_eq!(error.code, Some(wire::Code::Invalid), "{path}: {error}");
            assert!(error.to_string().contains("is not a safe path"), "{path}: {error}");
        }
        assert!(hone.json(&["models", "ls"]).as_array().unwrap().is_empty());
        assert_eq!(stored(&hone, "models"), Vec::<String>::new());
    }
}

/// Uploads a model without the checks of the command, as another client would; what completing it answers.
fn complete(hone: &Hone, dir: &Path) -> cli::error::CliError {
    let names = ["config.json", "tokenizer.json", "model.safetensors"];
    let hidden = indicatif::ProgressBar::hidden();
    let files = names.map(|name| {
        let path = dir.join(name);
        let sha256 = cli::transfer::sha256_file(&path, &hidden).unwrap();
        ModelFile { path: name.into(), size: path.metadata().unwrap().len(), sha256 }
    });
    let body = CreateModel { name: "corrupt".into(), files: files.into() };
    hone.with_api(async |api| {
        for session in api.create_model(&body).await.unwrap().uploads {
            let name = session.key.rsplit('/').next().unwrap();
            cli::transfer::put_parts(&session, &dir.join(name), &hidden).await.unwrap();
        }
        api.complete_model("corrupt", &revision(&body.files)).await.unwrap_err()
    })
}

#[test]
fn row_25_corrupt_safetensors_are_refused_and_nothing_of_them_is_kept() {
    let hone = Hone::started();
    let dir = hone.path("model");
    material::model(&dir);
    let whole = fs::read(dir.join("model.safetensors")).unwrap();
    let header = usize::try_from(u64::from_le_bytes(whole[..8].try_into().unwrap())).unwrap();
    for seed in seeds() {
        let mut dice = Dice::new(seed);
        let mut pick = |range: std::ops::Range<usize>| {
            let range = u64::try_from(range.start).unwrap()..u64::try_from(range.end).unwrap();
            usize::try_from(dice.next(range)).unwrap()
        };
        let mut flipped = whole.clone();
        // In the offsets and names of the header; a flip in the values is what digests are for.
        flipped[8 + pick(0..header)] ^= 0x80;
        let truncated = whole[..pick(1..whole.len())].to_vec();
        let mut absurd = whole.clone();
        absurd[..8].copy_from_slice(&(u64::try_from(whole.len() + pick(1..1 << 40)).unwrap()).to_le_bytes());
        for (what, bytes) in [("flipped", flipped), ("truncated", truncated), ("absurd header", absurd)] {
            fs::write(dir.join("model.safetensors"), bytes).unwrap();
            let error = complete(&hone, &dir);
            assert_eq!(error.code, Some(wire::Code::ModelCorrupt), "{what}, seed {seed}: {error}");
            assert!(error.to_string().contains("model.safetensors"), "{what}: {error}");
            assert_eq!(stored(&hone, "models"), Vec::<String>::new(), "{what}, seed {seed}");
        }
        let ready = hone.json(&["models", "ls"]);
        assert!(ready.as_array().unwrap().iter().all(|m| m["status"] != "ready"), "{ready:#}");
    }
}
