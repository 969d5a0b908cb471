//! Bodies that may be left out.

use actix_web::{
    Error, FromRequest, HttpRequest,
    dev::Payload,
    http::header::{CONTENT_LENGTH, TRANSFER_ENCODING},
    web,
};
use futures::{FutureExt, future::LocalBoxFuture};
use serde::de::DeserializeOwned;

/// The JSON body, or the default when there is none. A body that cannot be read is refused, not ignored.
#[derive(Debug)]
pub struct Optional<T>(pub T);

impl<T: DeserializeOwned + Default + 'static> FromRequest for Optional<T> {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self, Error>>;

    fn from_request(req: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let length = req.headers().get(CONTENT_LENGTH).is_some_and(|v| v.as_bytes() != b"0");
        let body = (length || req.headers().contains_key(TRANSFER_ENCODING))
            .then(|| web::Json::<T>::from_request(req, payload));
        async move {
            match body {
                Some(body) => Ok(Self(body.await?.into_inner())),
                None => Ok(Self(T::default())),
            }
        }
        .boxed_local()
    }
}
