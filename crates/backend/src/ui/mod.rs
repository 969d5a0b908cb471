//! The web UI below `/ui/`: the files that `make web` has built, inside the program. Built without them, the page says
//! how to get them.
//!
//! The API has the other paths, so no page can hide an operation: a path below `/ui/` that is no file is a page of the
//! UI, which the browser's router knows; what looks like a file and is none is a 404.

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder, ResponseError,
    http::header::{self, HeaderMap},
    web,
};
use rust_embed::{EmbeddedFile, RustEmbed};

#[derive(RustEmbed)]
#[folder = "../../web/dist"]
#[allow_missing = true]
struct Files;

/// Nothing inline, nothing foreign, never inside another page. Downloads go to storage by navigation, which no directive
/// restricts.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Files below carry a digest in their names.
const HASHED: &str = "assets/";

pub fn configure(config: &mut web::ServiceConfig) {
    for path in ["/", "/ui"] {
        config.service(web::resource(path).route(web::get().to(enter)).route(web::head().to(enter)));
    }
    config.service(web::resource("/ui/{path:.*}").route(web::get().to(serve)).route(web::head().to(serve)));
}

async fn enter() -> HttpResponse {
    HttpResponse::Found().insert_header((header::LOCATION, "/ui/")).finish()
}

async fn serve(req: HttpRequest, path: web::Path<String>) -> HttpResponse {
    let path = path.into_inner();
    // Not for their own sake: the other forms of a file.
    let form = path.ends_with(".br") || path.ends_with(".gz");
    match Files::get(&path).filter(|_| !path.is_empty() && !form) {
        Some(file) => send(&req, &path, file),
        None if is_page(&path) => {
            Files::get("index.html").map_or_else(how_to_build, |file| send(&req, "index.html", file))
        }
        None => service::server::no_route(&req).error_response(),
    }
}

/// Whether the browser's router may know the path: it does not look like a file.
fn is_page(path: &str) -> bool {
    !path.starts_with(HASHED) && path.rsplit('/').next().is_none_or(|name| !name.contains('.'))
}

fn send(req: &HttpRequest, path: &str, file: EmbeddedFile) -> HttpResponse {
    let tag = format!("\"{}\"", hex::encode(file.metadata.sha256_hash()));
    let caching = if path.starts_with(HASHED) { "public, max-age=31536000, immutable" } else { "no-cache" };
    let known = req.headers().get_all(header::IF_NONE_MATCH).filter_map(|v| v.to_str().ok());
    if known.flat_map(|v| v.split(',')).any(|t| t.trim().trim_start_matches("W/") == tag) {
        return HttpResponse::NotModified().insert_header((header::ETAG, tag)).finish();
    }
    let mut reply = HttpResponse::Ok();
    secure(&mut reply)
        .content_type(media_type(path))
        .insert_header((header::CACHE_CONTROL, caching))
        .insert_header((header::ETAG, tag))
        .insert_header((header::VARY, "accept-encoding"));
    let compressed = [("br", "br"), ("gzip", "gz")].into_iter().find_map(|(encoding, ending)| {
        let form = accepts(req.headers(), encoding).then(|| Files::get(&format!("{path}.{ending}")))??;
        Some((encoding, form))
    });
    match compressed {
        Some((encoding, form)) => {
            reply.insert_header((header::CONTENT_ENCODING, encoding)).body(form.data.into_owned())
        }
        None => reply.body(file.data.into_owned()),
    }
}

/// The headers of every answer of the UI.
fn secure(reply: &mut HttpResponseBuilder) -> &mut HttpResponseBuilder {
    reply
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::X_FRAME_OPTIONS, "DENY"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header(("cross-origin-opener-policy", "same-origin"))
        .insert_header(("permissions-policy", "camera=(), geolocation=(), microphone=()"))
}

/// Whether `accept-encoding` has the encoding and does not refuse it.
fn accepts(headers: &HeaderMap, encoding: &str) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|part| {
        let (name, quality) = part.split_once(';').unwrap_or((part, "q=1"));
        let refused = quality.trim().strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()) == Some(0.0);
        name.trim().eq_ignore_ascii_case(encoding) && !refused
    })
}

fn media_type(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("json") => "application/json",
        Some("woff2") => "font/woff2",
        _ => "application/octet-stream",
    }
}

/// The page of a program that was built without Node.
fn how_to_build() -> HttpResponse {
    let page = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Hone</title>\
        <meta name=\"viewport\" content=\"width=device-width\">\
        <h1>The web interface is not in this program</h1>\
        <p>It was built without it. With Node 20 or newer: <code>make web</code>, then <code>make build</code>.</p>\
        <p>Everything else works: <a href=\"/docs/\">the API</a> and the command <code>hone</code>.</p></html>";
    let mut reply = HttpResponse::Ok();
    secure(&mut reply)
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .content_type("text/html; charset=utf-8")
        .body(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::{App, http::StatusCode, test as http};

    #[test]
    fn pages_are_told_from_files() {
        for page in ["", "jobs", "jobs/5f1c", "packages/new"] {
            assert!(is_page(page), "{page}");
        }
        for file in ["assets/index-1a2b.js", "assets/x", "favicon.ico", "jobs/app.js.map"] {
            assert!(!is_page(file), "{file}");
        }
    }

    #[test]
    fn encodings_are_taken_at_their_word() {
        let headers = |text: &str| {
            http::TestRequest::default()
                .insert_header((header::ACCEPT_ENCODING, text))
                .to_http_request()
                .headers()
                .clone()
        };
        assert!(accepts(&headers("gzip, br"), "br"));
        assert!(accepts(&headers("GZIP;q=0.5"), "gzip"));
        assert!(!accepts(&headers("gzip"), "br"));
        assert!(!accepts(&headers("br;q=0, gzip"), "br"));
    }

    /// True of a program with the UI and of one without.
    #[actix_web::test]
    async fn every_answer_is_guarded_and_pages_are_fresh() {
        let app = http::init_service(App::new().configure(configure)).await;
        for path in ["/ui/", "/ui/jobs/1"] {
            let reply = http::call_service(&app, http::TestRequest::get().uri(path).to_request()).await;
            assert_eq!(reply.status(), StatusCode::OK);
            let headers = reply.headers();
            let policy = headers.get(header::CONTENT_SECURITY_POLICY).and_then(|v| v.to_str().ok()).unwrap_or_default();
            assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
            assert_eq!(headers.get(header::CACHE_CONTROL).and_then(|v| v.to_str().ok()), Some("no-cache"));
            assert_eq!(headers.get(header::X_CONTENT_TYPE_OPTIONS).and_then(|v| v.to_str().ok()), Some("nosniff"));
        }
        for (path, status) in
            [("/", StatusCode::FOUND), ("/ui", StatusCode::FOUND), ("/ui/assets/none.js", StatusCode::NOT_FOUND)]
        {
            let reply = http::call_service(&app, http::TestRequest::get().uri(path).to_request()).await;
            assert_eq!(reply.status(), status, "{path}");
        }
    }

    /// Only a program with the UI has something to look at.
    #[actix_web::test]
    async fn hashed_files_are_kept_and_sent_compressed() {
        let app = http::init_service(App::new().configure(configure)).await;
        for path in Files::iter().filter(|path| path.starts_with(HASHED) && path.ends_with(".js")) {
            let request =
                http::TestRequest::get().uri(&format!("/ui/{path}")).insert_header((header::ACCEPT_ENCODING, "gzip"));
            let reply = http::call_service(&app, request.to_request()).await;
            assert_eq!(reply.status(), StatusCode::OK);
            let value = |name: header::HeaderName| {
                reply.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
            };
            assert!(value(header::CACHE_CONTROL).contains("immutable"), "{path}");
            assert_eq!(value(header::CONTENT_TYPE), "text/javascript; charset=utf-8");
            // The smallest ones do not get smaller.
            let has_form = Files::get(&format!("{path}.gz")).is_some();
            assert_eq!(value(header::CONTENT_ENCODING) == "gzip", has_form, "{path}");
        }
    }
}
