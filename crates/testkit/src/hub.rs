//! A stand-in for the Hugging Face Hub, which cannot be had here: a small server speaks its endpoints as `huggingface_hub`
//! uses them: search with `Link` pages, revisions, listings, and files, the large ones by redirect to another server.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, http::header, web};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// The commit of the one model, `o/m`.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The token it wants.
pub const TOKEN: &str = "hf_canary_that_must_not_leak";
const WEIGHTS: &str = "model.safetensors";

#[derive(Debug)]
struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    /// Path and query of each request, and whether it carried the token.
    seen: Mutex<Vec<(String, bool)>>,
    /// Large files wait.
    held: AtomicBool,
    /// Large files arrive with another content.
    spoiled: AtomicBool,
    down: AtomicBool,
    elsewhere: String,
}

#[derive(Debug)]
pub struct Hub {
    pub url: String,
    shared: Arc<Shared>,
    server: actix_web::dev::ServerHandle,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Hub {
    fn drop(&mut self) {
        drop(self.server.stop(false));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Hub {
    /// Serves in a thread of its own until it is dropped.
    #[must_use]
    pub fn start() -> Self {
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/hone-tiny");
        let names = ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"];
        let mut files: BTreeMap<String, Vec<u8>> =
            names.iter().map(|n| ((*n).to_owned(), std::fs::read(assets.join(n)).unwrap())).collect();
        files.insert("pytorch_model.bin".into(), b"pickle".to_vec());
        files.insert("README.md".into(), b"# A model".to_vec());
        let listeners = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [url, elsewhere] = listeners.each_ref().map(|l| format!("http://{}", l.local_addr().unwrap()));
        let shared = Arc::new(Shared {
            files,
            seen: Mutex::default(),
            held: AtomicBool::new(false),
            spoiled: AtomicBool::new(false),
            down: AtomicBool::new(false),
            elsewhere,
        });
        let state = web::Data::from(Arc::clone(&shared));
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let app = move || {
                    App::new()
                        .app_data(state.clone())
                        .route("/api/models", web::get().to(search))
                        .route("/api/models/o/m/revision/{revision}", web::get().to(revision))
                        .route("/api/models/o/m/tree/{commit}", web::get().to(tree))
                        .route("/o/m/resolve/{commit}/{path:.*}", web::get().to(resolve))
                        .route("/large/{path:.*}", web::get().to(large))
                };
                let mut server = HttpServer::new(app).workers(1).disable_signals();
                for listener in listeners {
                    server = server.listen(listener).unwrap();
                }
                let server = server.run();
                sender.send(server.handle()).unwrap();
                server.await.unwrap();
            });
        });
        Self { url, shared, server: receiver.recv().unwrap(), thread: Some(thread) }
    }

    /// What a backend needs to use it.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, &str); 3] {
        [("HF_ENDPOINT", &self.url), ("HF_TOKEN", TOKEN), ("OUTGOING_ALLOW", "127.0.0.0/8")]
    }

    /// Path and query of each request that began so, and whether it carried the token.
    #[must_use]
    pub fn requests(&self, prefix: &str) -> Vec<(String, bool)> {
        self.shared.seen.lock().unwrap().iter().filter(|(path, _)| path.starts_with(prefix)).cloned().collect()
    }

    /// A file of the model.
    #[must_use]
    pub fn file(&self, path: &str) -> &[u8] {
        &self.shared.files[path]
    }

    /// Makes large files wait, or come.
    pub fn hold(&self, held: bool) {
        self.shared.held.store(held, Ordering::Relaxed);
    }

    /// From now on large files arrive with another content than listed.
    pub fn spoil(&self) {
        self.shared.spoiled.store(true, Ordering::Relaxed);
    }

    /// From now on searches fail.
    pub fn break_down(&self) {
        self.shared.down.store(true, Ordering::Relaxed);
    }
}

fn note(req: &HttpRequest, hub: &Shared) {
    let token = req.headers().get(header::AUTHORIZATION).is_some_and(|v| v == format!("Bearer {TOKEN}").as_str());
    hub.seen.lock().unwrap().push((req.uri().to_string(), token));
}

async fn search(req: HttpRequest, hub: web::Data<Shared>) -> HttpResponse {
    note(&req, &hub);
    if hub.down.load(Ordering::Relaxed) {
        return HttpResponse::BadGateway().finish();
    }
    let model = json!({"_id": "6", "id": "o/m", "author": "o", "sha": COMMIT, "lastModified": "2025-01-02T03:04:05.000Z",
        "createdAt": "2025-01-01T00:00:00.000Z", "private": false, "gated": "auto", "downloads": 7, "likes": 3,
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["safetensors"]});
    let next = format!("<http://{}/api/models?limit=1&cursor=abc%3D>; rel=\"next\"", req.connection_info().host());
    HttpResponse::Ok().insert_header((header::LINK, next)).json([model])
}

async fn revision(req: HttpRequest, hub: web::Data<Shared>) -> HttpResponse {
    note(&req, &hub);
    match req.match_info().get("revision") {
        Some("main") => HttpResponse::Ok().json(json!({"id": "o/m", "sha": COMMIT, "siblings": []})),
        Some("locked") => HttpResponse::Forbidden().insert_header(("x-error-code", "GatedRepo")).finish(),
        _ => HttpResponse::NotFound().insert_header(("x-error-code", "RevisionNotFound")).finish(),
    }
}

async fn tree(req: HttpRequest, hub: web::Data<Shared>) -> HttpResponse {
    note(&req, &hub);
    let entry = |(path, content): (&String, &Vec<u8>)| {
        let mut name = Sha1::new();
        name.update(format!("blob {}\0", content.len()));
        name.update(content);
        let mut entry =
            json!({"type": "file", "path": path, "size": content.len(), "oid": hex::encode(name.finalize())});
        if path == WEIGHTS {
            let sha256 = hex::encode(Sha256::digest(content));
            entry["lfs"] = json!({"oid": sha256, "size": content.len(), "pointerSize": 134});
        }
        entry
    };
    HttpResponse::Ok().json(hub.files.iter().map(entry).collect::<Vec<Value>>())
}

async fn resolve(req: HttpRequest, hub: web::Data<Shared>) -> HttpResponse {
    note(&req, &hub);
    let path = req.match_info().get("path").unwrap();
    if path == WEIGHTS {
        let to = format!("{}/large/{path}", hub.elsewhere);
        return HttpResponse::Found().insert_header((header::LOCATION, to)).finish();
    }
    part(&req, hub.files[path].clone())
}

async fn large(req: HttpRequest, hub: web::Data<Shared>) -> HttpResponse {
    note(&req, &hub);
    while hub.held.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut content = hub.files[req.match_info().get("path").unwrap()].clone();
    if hub.spoiled.load(Ordering::Relaxed) {
        *content.last_mut().unwrap() ^= 1;
    }
    part(&req, content)
}

fn part(req: &HttpRequest, content: Vec<u8>) -> HttpResponse {
    let range = req.headers().get(header::RANGE).unwrap().to_str().unwrap().strip_prefix("bytes=").unwrap().to_owned();
    let (from, to) = range.split_once('-').unwrap();
    let piece = content[from.parse().unwrap()..=to.parse().unwrap()].to_vec();
    HttpResponse::PartialContent().body(piece)
}
