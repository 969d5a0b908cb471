//! The gate in front of every handler: finds the operation, the caller, and whether the one may do the other.
//!
//! What it serves is what the OpenAPI document names, by the rules of [`MATRIX`]. A route that is missing from either
//! is answered with 404, so that no handler can be reached past them.

use super::{
    authz::{Access, MATRIX},
    openapi,
};
use crate::{
    auth::{self, AuthUser},
    error::{Error, Result},
    openai,
    state::AppState,
};
use actix_web::{
    HttpMessage, HttpResponse, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method, StatusCode,
        header::{HeaderValue, WWW_AUTHENTICATE},
    },
    middleware::Next,
    web,
};
use secrecy::SecretString;
use std::{collections::HashMap, sync::LazyLock};
use wire::{
    account::{Role, Scope},
    problem::Code,
};

/// An operation of the document.
#[derive(Debug)]
pub struct Operation {
    pub id: &'static str,
    pub access: Access,
    method: Method,
    path: Vec<Segment>,
}

/// Part of a path. The order decides which of two operations a path means: the one that spells it out.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    Literal(String),
    Parameter(String),
}

impl Segment {
    fn parse(part: &str) -> Self {
        match part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(name) => Self::Parameter(name.to_owned()),
            None => Self::Literal(part.to_owned()),
        }
    }

    fn fits(&self, part: &str) -> bool {
        match self {
            Self::Literal(text) => text == part,
            Self::Parameter(_) => !part.is_empty(),
        }
    }
}

impl Operation {
    /// Whether a handler that was found for parameters of these names is this operation's.
    pub(crate) fn takes<'a>(&self, parameters: impl Iterator<Item = &'a str>) -> bool {
        let own = self.path.iter().filter_map(|segment| match segment {
            Segment::Parameter(name) => Some(name.as_str()),
            Segment::Literal(_) => None,
        });
        own.eq(parameters)
    }
}

static OPERATIONS: LazyLock<Vec<Operation>> = LazyLock::new(|| {
    let access: HashMap<&str, (&'static str, Access)> = MATRIX.iter().map(|row| (row.0, *row)).collect();
    let mut operations = Vec::new();
    for (path, item) in openapi::document().paths.paths {
        let methods = [
            (Method::GET, item.get),
            (Method::PUT, item.put),
            (Method::POST, item.post),
            (Method::DELETE, item.delete),
            (Method::PATCH, item.patch),
        ];
        for (method, operation) in methods {
            let named = operation.and_then(|o| access.get(o.operation_id?.as_str()).copied());
            let Some((id, access)) = named else { continue };
            operations.push(Operation { id, access, method, path: path.split('/').map(Segment::parse).collect() });
        }
    }
    operations.sort_by(|a, b| a.path.cmp(&b.path));
    operations
});

/// The operation a request is for, when there is one.
fn operation(req: &ServiceRequest) -> Option<&'static Operation> {
    let path = openai::canonical(req.path());
    let parts: Vec<&str> = path.split('/').collect();
    let fits = |o: &&Operation| o.path.len() == parts.len() && o.path.iter().zip(&parts).all(|(s, part)| s.fits(part));
    OPERATIONS.iter().filter(|o| o.method == *req.method()).find(fits)
}

/// Who passed, and for what.
#[derive(Debug)]
pub struct Admitted {
    pub user: AuthUser,
    pub operation: &'static Operation,
}

/// Lets a request pass to its handler, or answers it.
pub async fn enforce<B: MessageBody + 'static>(
    req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let openai = openai::speaks(req.path());
    let Some(operation) = operation(&req) else {
        let reply = if openai {
            openai::error::unknown_route(req.request()).error_response()
        } else {
            service::server::no_route(req.request()).error_response()
        };
        return Ok(req.into_response(reply).map_into_right_body());
    };
    match admit(&req, operation).await {
        Ok(()) => next.call(req).await.map(ServiceResponse::map_into_left_body),
        Err(refusal) => Ok(req.into_response(refused(refusal, operation, openai)).map_into_right_body()),
    }
}

/// Finds out who is calling and whether they may; the handler finds the caller in the request's extensions.
async fn admit(req: &ServiceRequest, operation: &'static Operation) -> Result<()> {
    if matches!(operation.access, Access::Anyone | Access::Job) {
        return Ok(());
    }
    let state = req.app_data::<web::Data<AppState>>().ok_or_else(|| Error::defect("the application has no state"))?;
    let user = auth::authenticate(state, credential(req)).await?;
    permit(&user, operation)?;
    req.extensions_mut().insert(Admitted { user, operation });
    Ok(())
}

#[derive(serde::Deserialize)]
struct TokenQuery {
    token: Option<SecretString>,
}

/// `Authorization: Bearer`. Azure's clients send `api-key`; browsers cannot set headers on a WebSocket, so there, and
/// only there, the key may come as `?token=`: URLs end up in logs of proxies.
fn credential(req: &ServiceRequest) -> Option<SecretString> {
    let bearer = service::token::bearer(req.request()).map(SecretString::from);
    if openai::speaks(req.path()) {
        let azure = || req.headers().get("api-key")?.to_str().ok().map(SecretString::from);
        return bearer.or_else(azure);
    }
    if req.path().starts_with("/ws/") {
        let query = || web::Query::<TokenQuery>::from_query(req.query_string()).ok()?.into_inner().token;
        return bearer.or_else(query);
    }
    bearer
}

fn permit(user: &AuthUser, operation: &Operation) -> Result<()> {
    let scope = match operation.access {
        Access::Anyone | Access::Job | Access::Caller => return Ok(()),
        Access::User(scope) => scope,
        Access::Admin if user.role != Role::Admin => {
            let detail = format!("`{}` is for administrators", operation.id);
            return Err(Error::refused(Code::Forbidden, detail));
        }
        Access::Admin => Scope::Admin,
    };
    if scope.is_in(&user.scopes) {
        return Ok(());
    }
    let detail =
        format!("`{}` needs the scope `{scope}`, which this key does not have; use a key with it", operation.id);
    Err(Error::refused(Code::InsufficientScope, detail))
}

/// The reply to who may not; the header is that of RFC 6750.
fn refused(refusal: Error, operation: &Operation, openai: bool) -> HttpResponse {
    let code = refusal.code();
    let mut reply =
        if openai { openai::error::Error::from(refusal).error_response() } else { refusal.error_response() };
    let challenge = match (code, operation.access) {
        (Some(Code::InsufficientScope), Access::User(scope)) => {
            HeaderValue::try_from(format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\"")).ok()
        }
        _ if reply.status() == StatusCode::UNAUTHORIZED => Some(HeaderValue::from_static("Bearer")),
        _ => None,
    };
    if let Some(challenge) = challenge {
        reply.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    reply
}
