//! `/docs`: the OpenAPI document to read and try in a browser, and what the error codes mean.

use actix_web::{HttpResponse, web};
use std::fmt::Write as _;
use utoipa_swagger_ui::{Config, SwaggerUi};
use wire::problem::Code;

pub fn configure(config: &mut web::ServiceConfig) {
    config
        .route(
            "/docs",
            web::get().to(|| async { HttpResponse::Found().insert_header(("location", "/docs/")).finish() }),
        )
        // What `type` of a problem points to.
        .route("/docs/errors", web::get().to(errors))
        .service(SwaggerUi::new("/docs/{_:.*}").config(Config::from("/openapi.json")));
}

async fn errors() -> HttpResponse {
    let mut rows = String::new();
    for code in Code::ALL {
        let (name, status, title, meaning) = (code.name(), code.status(), code.title(), code.meaning());
        // Writing to a string does not fail.
        let _ = write!(
            rows,
            "<tr id=\"{name}\"><td><code>{name}</code></td><td>{status}</td><td>{title}</td><td>{meaning}</td></tr>"
        );
    }
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Hone: error codes</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>\
         :root{{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}}body{{max-width:60rem;margin:2rem auto;padding:0 1rem}}\
         table{{border-collapse:collapse;width:100%}}td,th{{text-align:left;vertical-align:top;padding:.4rem .6rem;\
         border-bottom:1px solid #8886}}tr:target{{background:#fc83}}</style>\
         <h1>Error codes</h1><p>Every error of the API is a problem (RFC 9457) with one of these as its <code>code</code>; \
         a code never changes its meaning. Below <code>/v1</code> errors are OpenAI's. <a href=\"/docs/\">All operations</a></p>\
         <table><tr><th>code</th><th>status</th><th>title</th><th>meaning</th></tr>{rows}</table></html>"
    );
    HttpResponse::Ok().content_type("text/html; charset=utf-8").body(page)
}
