//! The gate in front of every handler: finds the operation, the caller, and whether the one may do the other.
//!
//! What it serves is what the OpenAPI document names, by the rules of [`MATRIX`]. A route that is missing from either
//! is answered with 404, so that no handler can be reached past them.

use super::{
    authz::{Access, MATRIX},
    openapi,
};
use crate::{
    audit::{self, Record},
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
        header::{ALLOW, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    middleware::Next,
    web,
};
use secrecy::SecretString;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};
use wire::{
    account::{Outcome, Role, Scope},
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
    /// What a path names: its parameters.
    fn resource(&self, path: &str) -> Option<String> {
        let path = openai::canonical(path);
        let named = self.path.iter().zip(path.split('/')).filter(|(s, _)| matches!(s, Segment::Parameter(_)));
        let parts: Vec<&str> = named.map(|(_, part)| part).collect();
        (!parts.is_empty()).then(|| parts.join("/"))
    }

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

/// The operations a path means, one for each method: those of the path in the document that spells most of it out.
fn operations(path: &str) -> impl Iterator<Item = &'static Operation> {
    let path = openai::canonical(path);
    let parts: Vec<&str> = path.split('/').collect();
    let fits = |o: &&Operation| o.path.len() == parts.len() && o.path.iter().zip(&parts).all(|(s, part)| s.fits(part));
    let first = OPERATIONS.iter().find(fits);
    OPERATIONS.iter().filter(move |o| first.is_some_and(|first| o.path == first.path))
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
    let Some(operation) = operations(req.path()).find(|o| o.method == *req.method()) else {
        let reply = not_served(&req, openai);
        return Ok(req.into_response(reply).map_into_right_body());
    };
    if matches!(operation.access, Access::Anyone | Access::Job) {
        return next.call(req).await.map(ServiceResponse::map_into_left_body);
    }
    let answer = |refusal: Refusal| refused(refusal, operation, openai);
    let state = req.app_data::<web::Data<AppState>>().cloned();
    let Some(state) = state else {
        let defect = Error::defect("the application has no state");
        return Ok(req.into_response(answer(defect.into())).map_into_right_body());
    };
    let user = match identify(&state, &req).await {
        Ok(user) => user,
        Err(refusal) => return Ok(req.into_response(answer(refusal)).map_into_right_body()),
    };
    let record = (operation.method != Method::GET).then(|| {
        let address = address(&req, state.limits.proxies).map(|ip| ip.to_string());
        Record::new(&user, operation, operation.resource(req.path()), address)
    });
    if let Err(refusal) = permit(&user, operation) {
        let recorded = settle(&state, record, StatusCode::FORBIDDEN).await;
        let refusal = recorded.err().unwrap_or(refusal);
        return Ok(req.into_response(answer(refusal.into())).map_into_right_body());
    }
    req.extensions_mut().insert(Admitted { user, operation });
    let Some(record) = record else { return next.call(req).await.map(ServiceResponse::map_into_left_body) };
    let reply = audit::watch(Arc::clone(&record), next.call(req)).await?;
    match settle(&state, Some(record), reply.status()).await {
        Ok(()) => Ok(reply.map_into_left_body()),
        Err(error) => {
            let told = answer(error.into());
            Ok(reply.into_response(told).map_into_right_body())
        }
    }
}

/// The reply to a path or a method that no operation has.
fn not_served(req: &ServiceRequest, openai: bool) -> HttpResponse {
    let methods: Vec<&str> = operations(req.path()).map(|o| o.method.as_str()).collect();
    let allowed = methods.join(", ");
    let mut reply = match (methods.is_empty(), openai) {
        (true, true) => openai::error::unknown_route(req.request()).error_response(),
        (true, false) => service::server::no_route(req.request()).error_response(),
        (false, true) => openai::error::method_not_allowed(req.request(), &allowed).error_response(),
        (false, false) => {
            let detail = format!("`{}` does not take {}; it takes {allowed}", req.path(), req.method());
            Error::refused(Code::MethodNotAllowed, detail).error_response()
        }
    };
    if let (false, Ok(allowed)) = (methods.is_empty(), HeaderValue::try_from(allowed)) {
        reply.headers_mut().insert(ALLOW, allowed);
    }
    reply
}

/// Sees to it that the audit log has what it must: what was refused, and what succeeded.
async fn settle(state: &AppState, record: Option<Arc<Record>>, status: StatusCode) -> Result<()> {
    let Some(record) = record else { return Ok(()) };
    let outcome = match status {
        StatusCode::FORBIDDEN => Outcome::Refused,
        _ if status.is_success() && !record.is_written() => Outcome::Done,
        _ => return Ok(()),
    };
    record.write(&state.db, outcome).await.inspect_err(|_| {
        tracing::error!(
            ?record,
            outcome = outcome.as_str(),
            "cannot write to the audit log; the request gets an error"
        );
    })
}

/// Why a request is answered here.
#[derive(Debug)]
struct Refusal {
    error: Error,
    /// When the sender may go on.
    wait: Option<Duration>,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, wait: None }
    }
}

impl Refusal {
    fn wait(duration: Duration, what: &str) -> Self {
        let detail = format!("{what}; go on in {} s", duration.as_secs_f64().ceil());
        Self { error: Error::refused(Code::RateLimited, detail), wait: Some(duration) }
    }
}

/// Finds out who is calling, and whether they have called too often.
async fn identify(state: &AppState, req: &ServiceRequest) -> Result<AuthUser, Refusal> {
    let (credential, address) = (credential(req), address(req, state.limits.proxies));
    let digest = credential.as_ref().map(auth::hash).unwrap_or_default();
    let waiting = state.limits.may_try(address, &digest);
    waiting.map_err(|wait| Refusal::wait(wait, "too many failed attempts to sign in from this address"))?;
    let user = auth::authenticate(state, credential).await;
    match &user {
        Ok(_) => state.limits.tried(address, &digest, true),
        Err(error) if error.code() == Some(Code::Unauthorized) => state.limits.tried(address, &digest, false),
        Err(_) => {}
    }
    let user = user?;
    state.limits.request(user.sender()).map_err(|wait| Refusal::wait(wait, "this key sends too many requests"))?;
    Ok(user)
}

/// Where the request comes from: what the outermost of the trusted proxies saw, else the other end of the connection.
fn address(req: &ServiceRequest, proxies: usize) -> Option<IpAddr> {
    let peer = req.peer_addr().map(|peer| peer.ip());
    let Some(hop) = proxies.checked_sub(1) else { return peer };
    let headers = req.headers().get_all("x-forwarded-for").filter_map(|value| value.to_str().ok());
    let seen: Vec<&str> = headers.flat_map(|value| value.split(',')).map(str::trim).collect();
    seen.iter().rev().nth(hop).and_then(|text| text.parse().ok()).or(peer)
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

/// The reply to who may not, with the challenge of RFC 6750, or the time to wait: OpenAI's clients read milliseconds.
fn refused(refusal: Refusal, operation: &Operation, openai: bool) -> HttpResponse {
    let Refusal { error, wait } = refusal;
    let code = error.code();
    let mut reply = if openai { openai::error::Error::from(error).error_response() } else { error.error_response() };
    if let Some(wait) = wait {
        let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        if openai && let Ok(value) = HeaderValue::try_from(wait.as_millis().max(1).to_string()) {
            reply.headers_mut().insert(HeaderName::from_static("retry-after-ms"), value);
        }
    }
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
