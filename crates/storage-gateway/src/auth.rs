//! Who calls, and what they may touch.

use crate::{
    gateway::Gateway,
    keys::{Key, check_prefix},
};
use actix_web::{FromRequest, HttpRequest, dev::Payload, web};
use service::{
    ApiError, ApiResult,
    token::{Grant, bearer},
};
use std::{
    future::{Ready, ready},
    sync::Arc,
};
use wire::problem::Code;

/// A caller with a valid token.
#[derive(Debug, Clone)]
pub struct Caller(Grant);

impl Caller {
    /// The key, if it is well-formed and this caller may read it.
    pub fn readable(&self, key: &str) -> ApiResult<Key> {
        let parsed = Key::parse(key)?;
        if self.0.can_read(key) { Ok(parsed) } else { Err(forbidden("read", key)) }
    }

    /// The key, if it is well-formed and this caller may write it.
    pub fn writable(&self, key: &str) -> ApiResult<Key> {
        let parsed = Key::parse(key)?;
        if self.0.can_write(key) { Ok(parsed) } else { Err(forbidden("write", key)) }
    }

    pub fn check_readable_prefix(&self, prefix: &str) -> ApiResult<()> {
        check_prefix(prefix)?;
        if self.0.can_read(prefix) { Ok(()) } else { Err(forbidden("read", prefix)) }
    }

    pub fn check_writable_prefix(&self, prefix: &str) -> ApiResult<()> {
        check_prefix(prefix)?;
        if self.0.can_write(prefix) { Ok(()) } else { Err(forbidden("write", prefix)) }
    }
}

fn forbidden(verb: &str, key: &str) -> ApiError {
    ApiError::new(Code::Forbidden, format!("this token may not {verb} `{key}`"))
}

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(authenticate(req))
    }
}

fn authenticate(req: &HttpRequest) -> ApiResult<Caller> {
    let Some(gateway) = req.app_data::<web::Data<Arc<Gateway>>>() else {
        return Err(ApiError::internal("the gateway is not part of the application"));
    };
    let Some(token) = bearer(req) else {
        return Err(ApiError::new(Code::Unauthorized, "send a token: `Authorization: Bearer …`"));
    };
    let grant = gateway.tokens.verify(token);
    grant.map(Caller).map_err(|e| ApiError::new(Code::Unauthorized, e.to_string()).caused_by(e))
}
