//! Conditional requests: `ETag`, `If-Match`, `If-None-Match`, and the `Idempotency-Key` of requests that create.

use crate::{
    error::{Error, Result},
    packages::Expected,
    store::idempotency::IdempotencyKey,
};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, http::header};
use serde::Serialize;
use wire::{package::VersionView, problem::Code};

/// `Idempotency-Key`, bound to the operation and the body.
pub fn idempotency_key<B: Serialize>(req: &HttpRequest, scope: &str, body: &B) -> Result<Option<IdempotencyKey>> {
    let Some(value) = req.headers().get("idempotency-key") else { return Ok(None) };
    let printable = |text: &&str| text.bytes().all(|b| matches!(b, b' '..=b'~'));
    let key = value.to_str().ok().filter(printable);
    let key = key.ok_or_else(|| Error::refused(Code::Invalid, "Idempotency-Key: must be printable ASCII"))?;
    IdempotencyKey::new(key, scope, body).map(Some)
}

/// The revisions that `If-Match` names. A weak or foreign tag matches nothing, as RFC 9110 has it.
pub fn if_match(req: &HttpRequest) -> Option<Expected> {
    let mut revisions = Vec::new();
    let mut values = req.headers().get_all(header::IF_MATCH).peekable();
    values.peek()?;
    for tag in values.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim) {
        if tag == "*" {
            return Some(Expected::Anything);
        }
        revisions.extend(tag.strip_prefix('"').and_then(|t| t.strip_suffix('"')).and_then(|t| t.parse::<i32>().ok()));
    }
    Some(Expected::Revision(revisions))
}

/// As [`if_match`], for requests that must say what they change.
pub fn required_if_match(req: &HttpRequest) -> Result<Expected> {
    let detail = "saving a draft needs `If-Match` with the revision that was edited, such as `\"3\"`";
    if_match(req).ok_or_else(|| Error::refused(Code::PreconditionRequired, detail))
}

fn tag(view: &VersionView) -> String {
    format!("\"{}\"", view.revision)
}

/// A reply with the version and its `ETag`.
pub fn tagged(mut reply: HttpResponseBuilder, view: &VersionView) -> HttpResponse {
    reply.insert_header((header::ETAG, tag(view))).json(view)
}

/// As [`tagged`] with 200, or 304 when the client has it.
pub fn fresh(req: &HttpRequest, view: &VersionView) -> HttpResponse {
    let known = req.headers().get_all(header::IF_NONE_MATCH).filter_map(|v| v.to_str().ok());
    let tag = tag(view);
    if known.flat_map(|v| v.split(',')).any(|t| t.trim().trim_start_matches("W/") == tag) {
        return HttpResponse::NotModified().insert_header((header::ETAG, tag)).finish();
    }
    tagged(HttpResponse::Ok(), view)
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    #[test]
    fn if_match_names_revisions() {
        let of = |value: &str| if_match(&TestRequest::default().insert_header(("if-match", value)).to_http_request());
        assert_eq!(of("\"3\""), Some(Expected::Revision(vec![3])));
        assert_eq!(of("\"3\", \"4\""), Some(Expected::Revision(vec![3, 4])));
        assert_eq!(of("*"), Some(Expected::Anything));
        assert_eq!(of("W/\"3\""), Some(Expected::Revision(vec![])));
        assert_eq!(of("3"), Some(Expected::Revision(vec![])));
        assert_eq!(if_match(&TestRequest::default().to_http_request()), None);
    }
}
