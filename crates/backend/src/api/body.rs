//! JSON bodies.

use actix_web::{
    Error, FromRequest, HttpRequest,
    dev::Payload,
    http::header::{CONTENT_LENGTH, TRANSFER_ENCODING},
    web,
};
use futures::{FutureExt, future::LocalBoxFuture};
use serde::de::DeserializeOwned;
use serde_json::Value;
use service::ApiError;
use wire::{
    problem::{Code, Problem},
    strict,
};

/// The body, read strictly.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + 'static> FromRequest for Json<T> {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self, Error>>;

    fn from_request(req: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let body = web::Json::<Value>::from_request(req, payload);
        async move { Ok(Self(read(body.await?.into_inner())?)) }.boxed_local()
    }
}

/// The body, or the default when there is none or `null`. One that cannot be read is refused, not ignored.
#[derive(Debug)]
pub struct Optional<T>(pub T);

impl<T: DeserializeOwned + Default + 'static> FromRequest for Optional<T> {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self, Error>>;

    fn from_request(req: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let length = req.headers().get(CONTENT_LENGTH).is_some_and(|v| v.as_bytes() != b"0");
        let body = (length || req.headers().contains_key(TRANSFER_ENCODING))
            .then(|| Json::<Option<T>>::from_request(req, payload));
        async move {
            match body {
                Some(body) => Ok(Self(body.await?.0.unwrap_or_default())),
                None => Ok(Self(T::default())),
            }
        }
        .boxed_local()
    }
}

fn read<T: DeserializeOwned>(body: Value) -> Result<T, ApiError> {
    strict::from_value(body).map_err(|e| {
        let at = if e.path.is_empty() { "request body".to_owned() } else { format!("request body: {}", e.path) };
        Problem::new(Code::Invalid, format!("{at}: {}", e.message)).with_errors(vec![e]).into()
    })
}
