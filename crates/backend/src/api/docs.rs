//! `/docs`: the OpenAPI document to read and try in a browser, and what the error codes mean.

use actix_web::{HttpResponse, web};
use std::fmt::Write as _;
use utoipa_swagger_ui::{Config, SwaggerUi};
use wire::{advice::Advice, job::FailureCode, problem::Code};

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
    let (mut rows, mut failures) = (String::new(), String::new());
    for code in Code::ALL {
        let (name, status, meaning, Advice { cause, remedy }) =
            (code.name(), code.status(), code.meaning(), code.advice());
        // Writing to a string does not fail.
        let _ = write!(
            rows,
            "<tr id=\"{name}\"><td><code>{name}</code></td><td>{status}</td><td>{meaning}</td><td>{cause}</td><td>{remedy}</td></tr>"
        );
    }
    for code in FailureCode::ALL {
        let (name, meaning, Advice { cause, remedy }) = (code.name(), code.meaning(), code.advice());
        let again = if code.is_retryable() { "yes" } else { "no" };
        let _ = write!(
            failures,
            "<tr id=\"failure-{name}\"><td><code>{name}</code></td><td>{again}</td><td>{meaning}</td><td>{cause}</td><td>{remedy}</td></tr>"
        );
    }
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Hone: error codes</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>\
         :root{{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}}body{{max-width:80rem;margin:2rem auto;padding:0 1rem}}\
         table{{border-collapse:collapse;width:100%}}td,th{{text-align:left;vertical-align:top;padding:.4rem .6rem;\
         border-bottom:1px solid #8886}}tr:target{{background:#fc83}}</style>\
         <h1>Error codes</h1><p>Every error of the API is a problem (RFC 9457) with one of these as its <code>code</code>; \
         a code never changes its meaning. Below <code>/v1</code> errors are OpenAI's. <a href=\"/docs/\">All operations</a></p>\
         <table><tr><th>code</th><th>status</th><th>meaning</th><th>cause</th><th>remedy</th></tr>{rows}</table>\
         <h2>Why jobs fail</h2><p>What <code>failure.code</code> of a job says.</p>\
         <table><tr><th>code</th><th>tried again</th><th>meaning</th><th>cause</th><th>remedy</th></tr>{failures}</table></html>"
    );
    HttpResponse::Ok().content_type("text/html; charset=utf-8").body(page)
}
