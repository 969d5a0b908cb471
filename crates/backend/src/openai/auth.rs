//! Who is calling: the same API keys as everywhere, as `Authorization: Bearer` or, as Azure's clients do, `api-key`.

use super::error::Error;
use crate::auth::{AuthUser, authenticate};
use actix_web::{FromRequest, HttpRequest, dev::Payload};
use futures::{FutureExt, TryFutureExt, future::LocalBoxFuture};
use secrecy::SecretString;
use std::ops::Deref;

/// An authenticated user whose refusal is an OpenAI error object.
#[derive(Debug, Clone)]
pub struct ApiUser(pub AuthUser);

impl Deref for ApiUser {
    type Target = AuthUser;

    fn deref(&self) -> &AuthUser {
        &self.0
    }
}

impl FromRequest for ApiUser {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self, Error>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let azure = || req.headers().get("api-key").and_then(|v| v.to_str().ok());
        let key = service::token::bearer(req).or_else(azure).map(SecretString::from);
        authenticate(req, key).map_ok(Self).map_err(Error::from).boxed_local()
    }
}

/// Whether the client says that it sends this request again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    First,
    Again,
}

impl Delivery {
    /// `x-stainless-retry-count` counts the tries before this one.
    #[must_use]
    pub fn of(req: &HttpRequest) -> Self {
        let count = req.headers().get("x-stainless-retry-count").and_then(|v| v.to_str().ok()?.parse::<u32>().ok());
        if count.is_some_and(|n| n > 0) { Self::Again } else { Self::First }
    }
}
