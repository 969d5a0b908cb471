//! The protocol of the stub.

use super::{
    Inner, NAMESPACE, Request, Shared, TOKEN,
    controllers::log_of,
    faults::Fault,
    objects::{Event, KINDS, Refusal, selects, text},
};
use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    http::{StatusCode, header},
    web::{self, Bytes},
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    net::TcpListener,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// Idle time after which a watch gets a bookmark.
const BOOKMARK: Duration = Duration::from_millis(200);

type Query = web::Query<HashMap<String, String>>;

pub fn serve(shared: Arc<Shared>) -> (String, actix_web::dev::ServerHandle, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let state = web::Data::from(shared);
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        actix_web::rt::System::new().block_on(async move {
            let app = move || {
                App::new()
                    .app_data(state.clone())
                    .app_data(web::PayloadConfig::new(4 << 20))
                    .default_service(web::to(handle))
            };
            let server = HttpServer::new(app).workers(1).shutdown_timeout(0).disable_signals();
            let server = server.listen(listener).unwrap().run();
            sender.send(server.handle()).unwrap();
            server.await.unwrap();
        });
    });
    (url, receiver.recv().unwrap(), thread)
}

/// Where a request goes.
struct Place {
    kind: &'static str,
    name: String,
    sub: String,
}

fn place(path: &str) -> Option<Place> {
    let rest = path.strip_prefix("/apis/").or_else(|| path.strip_prefix("/api/"))?;
    let (group, rest) = rest.split_once(&format!("/namespaces/{NAMESPACE}/"))?;
    let mut parts = rest.splitn(3, '/');
    let (plural, name, sub) = (parts.next()?, parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (kind, ..) = KINDS.iter().find(|(kind, api, _)| *kind == plural && *api == group)?;
    Some(Place { kind, name: name.to_owned(), sub: sub.to_owned() })
}

fn refuse(refusal: &Refusal) -> HttpResponse {
    HttpResponse::build(StatusCode::from_u16(refusal.code).unwrap()).json(refusal.status())
}

fn verb(req: &HttpRequest, place: &Place, query: &Query) -> &'static str {
    match req.method().as_str() {
        "POST" => "create",
        "PATCH" => "patch",
        "PUT" => "update",
        "DELETE" => "delete",
        _ if query.get("watch").is_some_and(|w| w == "true") => "watch",
        _ if place.name.is_empty() => "list",
        _ => "get",
    }
}

async fn handle(req: HttpRequest, query: Query, body: Bytes, state: web::Data<Shared>) -> HttpResponse {
    let authorized = req.headers().get(header::AUTHORIZATION).is_some_and(|v| v == format!("Bearer {TOKEN}").as_str());
    if !authorized {
        return refuse(&Refusal::new(401, "Unauthorized", "Unauthorized"));
    }
    let Some(place) = place(req.path()) else {
        return refuse(&Refusal::new(404, "NotFound", "the server could not find the requested resource"));
    };
    let verb = verb(&req, &place, &query);
    let resource = if place.sub.is_empty() { place.kind.to_owned() } else { format!("{}/{}", place.kind, place.sub) };
    let fault = state.lock().faults.meet(verb, &req.uri().to_string());
    let response = match fault {
        Some(Fault::TooMany { retry_after }) => HttpResponse::TooManyRequests()
            .insert_header((header::RETRY_AFTER, retry_after.to_string()))
            .content_type("text/plain; charset=utf-8")
            .body("Too many requests, please try again later.\n"),
        Some(Fault::Error) => refuse(&Refusal::new(500, "InternalError", "etcdserver: leader changed")),
        Some(Fault::LostReply) => {
            answer(&req, &place, verb, &query, &body, &state);
            broken()
        }
        None => answer(&req, &place, verb, &query, &body, &state),
    };
    let status = response.status().as_u16();
    state.lock().requests.push(Request { verb, resource, name: place.name, status });
    response
}

/// Its head arrives and then nothing.
fn broken() -> HttpResponse {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    sender.try_send(Err(std::io::ErrorKind::ConnectionReset.into())).unwrap();
    HttpResponse::Ok().content_type("application/json").streaming(stream(receiver))
}

fn stream(
    receiver: mpsc::Receiver<Result<Bytes, std::io::Error>>,
) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> {
    futures::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)))
}

fn answer(
    req: &HttpRequest,
    place: &Place,
    verb: &str,
    query: &Query,
    body: &[u8],
    state: &web::Data<Shared>,
) -> HttpResponse {
    let mut lock = state.lock();
    let inner = &mut *lock;
    let sent: Value = serde_json::from_slice(body).unwrap_or_default();
    let result = match verb {
        "watch" => {
            drop(lock);
            return watch(place, query, state);
        }
        "get" if place.sub == "log" => return log(inner, place, query),
        "get" => inner.objects.get(place.kind, &place.name),
        "list" => return page(inner, place, query),
        "create" => {
            let created = inner.objects.create(place.kind, sent);
            return match created {
                Ok(object) => HttpResponse::Created().json(object),
                Err(refusal) => refuse(&refusal),
            };
        }
        "patch" if req.headers().get(header::CONTENT_TYPE).is_none_or(|t| t != "application/merge-patch+json") => {
            Err(Refusal::new(415, "UnsupportedMediaType", "the body of the request was in an unknown format"))
        }
        "patch" => {
            inner.faults.interfere(&mut inner.objects, place.kind, &place.name);
            inner.objects.patch(place.kind, &place.name, &sent)
        }
        "delete" => inner.objects.delete(place.kind, &place.name, &sent),
        _ => Err(Refusal::new(405, "MethodNotAllowed", "the server does not allow this method")),
    };
    match result {
        Ok(object) => HttpResponse::Ok().json(object),
        Err(refusal) => refuse(&refusal),
    }
}

fn log(inner: &Inner, place: &Place, query: &Query) -> HttpResponse {
    if let Err(refusal) = inner.objects.get("pods", &place.name) {
        return refuse(&refusal);
    }
    let Ok(text) = std::fs::read_to_string(log_of(&inner.dir, &place.name)) else {
        let message = format!("container \"trainer\" in pod \"{}\" is waiting to start", place.name);
        return refuse(&Refusal::new(400, "BadRequest", message));
    };
    let lines: Vec<&str> = text.lines().collect();
    let tail = query.get("tailLines").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let text: String = lines.iter().skip(lines.len().saturating_sub(tail)).map(|l| format!("{l}\n")).collect();
    HttpResponse::Ok().content_type("text/plain").body(text)
}

/// A list in pages; a token is the name that the last page ended with.
fn page(inner: &Inner, place: &Place, query: &Query) -> HttpResponse {
    let (_, api, kind) = KINDS.iter().find(|(name, ..)| *name == place.kind).unwrap();
    let selector = query.get("labelSelector").map_or("", String::as_str);
    let after = query.get("continue").map_or("", String::as_str);
    let limit = query.get("limit").and_then(|n| n.parse().ok()).filter(|n| *n > 0).unwrap_or(usize::MAX);
    let found = inner.objects.find(place.kind, selector);
    let rest: Vec<Value> = found.into_iter().filter(|o| text(o, "/metadata/name") > after).collect();
    let more = rest.len() > limit;
    let items: Vec<Value> = rest.into_iter().take(limit).collect();
    let next = items.last().filter(|_| more).map_or("", |o| text(o, "/metadata/name"));
    HttpResponse::Ok().json(json!({"apiVersion": api, "kind": format!("{kind}List"), "items": items,
        "metadata": {"resourceVersion": inner.objects.version.to_string(), "continue": next}}))
}

fn line(what: &str, object: &Value) -> Bytes {
    let mut text = json!({"type": what, "object": object}).to_string();
    text.push('\n');
    text.into()
}

fn watch(place: &Place, query: &Query, state: &web::Data<Shared>) -> HttpResponse {
    let number = |name: &str| query.get(name).and_then(|v| v.parse::<u64>().ok());
    let (from, timeout) = (number("resourceVersion").unwrap_or_default(), number("timeoutSeconds").unwrap_or(300));
    let gone = Refusal::new(410, "Expired", format!("too old resource version: {from}"));
    {
        let mut inner = state.lock();
        if inner.faults.expires() {
            inner.objects.compact();
            if inner.objects.version.is_multiple_of(2) {
                return refuse(&gone);
            }
        }
    }
    let (sender, receiver) = mpsc::channel(64);
    let follow = Follow {
        kind: place.kind,
        selector: query.get("labelSelector").cloned().unwrap_or_default(),
        bookmarks: query.get("allowWatchBookmarks").is_some_and(|b| b == "true"),
        version: from,
        until: Instant::now() + Duration::from_secs(timeout),
        gone: gone.status(),
    };
    actix_web::rt::spawn(follow.run(state.clone(), sender));
    HttpResponse::Ok().content_type("application/json").streaming(stream(receiver))
}

struct Follow {
    kind: &'static str,
    selector: String,
    bookmarks: bool,
    version: u64,
    until: Instant,
    gone: Value,
}

impl Follow {
    async fn run(mut self, state: web::Data<Shared>, sender: mpsc::Sender<Result<Bytes, std::io::Error>>) {
        let mut changes = state.changed.subscribe();
        while Instant::now() < self.until {
            let (events, newest) = {
                let inner = state.lock();
                (inner.objects.after(self.kind, self.version), inner.objects.version)
            };
            let Some(events) = events else {
                let _ = sender.send(Ok(line("ERROR", &self.gone))).await;
                return;
            };
            for Event { what, object, version, .. } in events {
                self.version = version;
                if !selects(&self.selector, &object) {
                    continue;
                }
                if sender.send(Ok(line(what, &object))).await.is_err() {
                    return;
                }
                if state.lock().faults.drops_watch() {
                    let _ = sender.send(Err(std::io::ErrorKind::ConnectionReset.into())).await;
                    return;
                }
            }
            let idle = tokio::time::timeout(BOOKMARK, changes.changed()).await.is_err();
            if idle && self.bookmarks {
                self.version = newest;
                let (_, api, kind) = KINDS.iter().find(|(name, ..)| *name == self.kind).unwrap();
                let metadata = json!({"resourceVersion": newest.to_string(), "creationTimestamp": null});
                let mark = json!({"apiVersion": api, "kind": kind, "metadata": metadata});
                if sender.send(Ok(line("BOOKMARK", &mark))).await.is_err() {
                    return;
                }
            }
        }
    }
}
