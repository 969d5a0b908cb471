//! A storage gateway in memory that keeps to `wire::storage`, for what the job machinery uses of it.

use actix_web::{App, HttpResponse, HttpServer, dev::ServerHandle, web};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    net::TcpListener,
    sync::{Arc, Mutex},
};
use wire::{
    problem::{Code, Problem},
    storage::{ObjectInfo, ObjectList, VerifyRequest},
};

type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

pub struct Gateway {
    pub url: String,
    objects: Objects,
    server: ServerHandle,
}

impl Gateway {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let objects = Objects::default();
        let shared = web::Data::new(Arc::clone(&objects));
        let server = HttpServer::new(move || {
            App::new()
                .app_data(shared.clone())
                .app_data(web::PayloadConfig::new(64 << 20))
                .route("/health", web::get().to(HttpResponse::Ok))
                .route("/verify", web::post().to(verify))
                .route("/objects", web::get().to(list))
                .service(
                    web::resource("/objects/{key:.*}")
                        .route(web::put().to(put))
                        .route(web::get().to(get))
                        .route(web::delete().to(delete)),
                )
        })
        .workers(1)
        .disable_signals()
        .listen(listener)
        .unwrap()
        .run();
        let handle = server.handle();
        tokio::spawn(server);
        Self { url, objects, server: handle }
    }

    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        self.objects.lock().unwrap().get(key).cloned()
    }

    pub fn keys(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.server.stop(false));
    }
}

async fn put(key: web::Path<String>, body: web::Bytes, objects: web::Data<Objects>) -> HttpResponse {
    objects.lock().unwrap().insert(key.clone(), body.to_vec());
    HttpResponse::Ok().json(info(&key, &body))
}

async fn get(key: web::Path<String>, objects: web::Data<Objects>) -> HttpResponse {
    match objects.lock().unwrap().get(key.as_str()) {
        Some(body) => HttpResponse::Ok().body(body.clone()),
        None => problem(Code::NotFound, &key),
    }
}

async fn delete(key: web::Path<String>, objects: web::Data<Objects>) -> HttpResponse {
    objects.lock().unwrap().remove(key.as_str());
    HttpResponse::NoContent().finish()
}

#[derive(Deserialize)]
struct ListQuery {
    prefix: String,
    after: Option<String>,
    limit: usize,
}

async fn list(query: web::Query<ListQuery>, objects: web::Data<Objects>) -> HttpResponse {
    let after = query.after.clone().unwrap_or_default();
    let all = objects.lock().unwrap();
    let found = all.iter().filter(|(key, _)| key.starts_with(&query.prefix) && **key > after);
    let objects = found.take(query.limit).map(|(key, body)| info(key, body)).collect();
    HttpResponse::Ok().json(ObjectList { objects, next_after: None })
}

async fn verify(request: web::Json<VerifyRequest>, objects: web::Data<Objects>) -> HttpResponse {
    let all = objects.lock().unwrap();
    for file in &request.files {
        let Some(body) = all.get(&file.key) else { return problem(Code::NotFound, &file.key) };
        if hex::encode(Sha256::digest(body)) != file.sha256 {
            return problem(Code::ChecksumMismatch, &file.key);
        }
    }
    HttpResponse::Ok().finish()
}

fn info(key: &str, body: &[u8]) -> ObjectInfo {
    ObjectInfo { key: key.into(), size: u64::try_from(body.len()).unwrap(), sha256: None, last_modified: None }
}

fn problem(code: Code, key: &str) -> HttpResponse {
    let status = actix_web::http::StatusCode::from_u16(code.status()).unwrap();
    HttpResponse::build(status).json(Problem::new(code, format!("`{key}` is not there as promised")))
}
