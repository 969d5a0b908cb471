//! A test double of the storage gateway's upload sessions that loses, refuses and damages as told. The real gateway
//! cannot be made to do this at a chosen moment.

use actix_web::{App, HttpResponse, HttpServer, web};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    net::TcpListener,
    sync::{Arc, Mutex},
};
use wire::{
    problem::{Code, PROBLEM_JSON, Problem},
    storage::{OpenUpload, UploadPart, UploadSession, VerifyRequest},
};

const PART: u64 = 1 << 20;

/// What goes wrong.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// URLs of the first session are dead.
    pub expired_urls: bool,
    /// Every part fails this often before it is taken.
    pub failures_per_part: usize,
    /// The object is made, but the reply to `complete` says 500.
    pub lost_complete: bool,
    /// The first upload arrives damaged.
    pub damaged_once: bool,
}

#[derive(Default)]
struct State {
    url: String,
    faults: Faults,
    size: u64,
    sha256: String,
    parts: BTreeMap<u32, Vec<u8>>,
    tries: BTreeMap<u32, usize>,
    generation: usize,
    sessions: usize,
    object: Option<Vec<u8>>,
}

#[derive(Clone)]
pub struct UploadDouble {
    pub url: String,
    state: Arc<Mutex<State>>,
}

type Shared = web::Data<UploadDouble>;

impl UploadDouble {
    pub fn start(faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = State { url: url.clone(), faults, ..State::default() };
        let double = Self { url, state: Arc::new(Mutex::new(state)) };
        let data = web::Data::new(double.clone());
        std::thread::spawn(move || {
            let server = HttpServer::new(move || {
                App::new()
                    .app_data(data.clone())
                    .app_data(web::PayloadConfig::new(64 << 20))
                    .route("/uploads", web::post().to(open))
                    .route("/uploads/u", web::get().to(show))
                    .route("/uploads/u/complete", web::post().to(complete))
                    .route("/verify", web::post().to(verify))
                    .route("/part/{generation}/{number}", web::put().to(put_part))
            });
            actix_web::rt::System::new().block_on(server.workers(1).listen(listener).unwrap().run()).unwrap();
        });
        double
    }

    pub fn object(&self) -> Option<Vec<u8>> {
        self.state.lock().unwrap().object.clone()
    }

    pub fn sessions(&self) -> usize {
        self.state.lock().unwrap().sessions
    }
}

impl State {
    fn view(&mut self, key: &str) -> UploadSession {
        self.generation += 1;
        let count = self.size.div_ceil(PART);
        let parts = (0..count).map(|i| (u32::try_from(i + 1).unwrap(), i * PART));
        let missing = parts.filter(|(number, _)| !self.parts.contains_key(number)).map(|(number, offset)| UploadPart {
            number,
            offset,
            size: PART.min(self.size - offset),
            url: format!("{}/part/{}/{number}", self.url, self.generation),
        });
        UploadSession {
            id: "u".into(),
            key: key.into(),
            size: self.size,
            part_size: PART,
            parts: missing.collect(),
            urls_expire_at: chrono::Utc::now(),
        }
    }
}

async fn open(double: Shared, body: web::Json<OpenUpload>) -> HttpResponse {
    let mut state = double.state.lock().unwrap();
    state.sessions += 1;
    state.size = body.size;
    state.sha256 = body.sha256.clone().unwrap();
    state.parts.clear();
    HttpResponse::Created().json(state.view(&body.key))
}

async fn show(double: Shared) -> HttpResponse {
    HttpResponse::Ok().json(double.state.lock().unwrap().view("k"))
}

async fn put_part(double: Shared, path: web::Path<(usize, u32)>, body: web::Bytes) -> HttpResponse {
    let (generation, number) = path.into_inner();
    let mut state = double.state.lock().unwrap();
    if state.faults.expired_urls && generation == 1 {
        return HttpResponse::Forbidden().body("<Error><Code>AccessDenied</Code></Error>");
    }
    let limit = state.faults.failures_per_part;
    let tries = state.tries.entry(number).or_default();
    *tries += 1;
    if *tries <= limit {
        return HttpResponse::ServiceUnavailable().body("<Error><Code>SlowDown</Code></Error>");
    }
    let mut bytes = body.to_vec();
    if state.faults.damaged_once && state.sessions == 1 && number == 2 {
        bytes[0] ^= 1;
    }
    state.parts.insert(number, bytes);
    HttpResponse::Ok().finish()
}

async fn complete(double: Shared) -> HttpResponse {
    let mut state = double.state.lock().unwrap();
    let object = state.parts.values().flatten().copied().collect::<Vec<u8>>();
    if hex::encode(Sha256::digest(&object)) != state.sha256 {
        let problem = Problem::new(Code::ChecksumMismatch, "damaged");
        return HttpResponse::UnprocessableEntity().content_type(PROBLEM_JSON).json(problem);
    }
    state.object = Some(object);
    if state.faults.lost_complete {
        return HttpResponse::InternalServerError().finish();
    }
    HttpResponse::Ok().json(serde_json::json!({"key": "k", "size": state.size}))
}

async fn verify(double: Shared, body: web::Json<VerifyRequest>) -> HttpResponse {
    let state = double.state.lock().unwrap();
    let same = |object: &Vec<u8>| hex::encode(Sha256::digest(object)) == body.files[0].sha256;
    if state.object.as_ref().is_some_and(same) {
        HttpResponse::Ok().finish()
    } else {
        HttpResponse::NotFound().finish()
    }
}
