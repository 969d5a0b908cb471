//! Users, their keys, and what a key may do.

use crate::ids::{KeyId, UserId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// What a key may be used for. Reading and writing are granted apart: neither includes the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Scope {
    /// Everything its user may do.
    #[serde(rename = "*")]
    All,
    #[serde(rename = "jobs:read")]
    JobsRead,
    #[serde(rename = "jobs:write")]
    JobsWrite,
    #[serde(rename = "datasets:read")]
    DatasetsRead,
    #[serde(rename = "datasets:write")]
    DatasetsWrite,
    #[serde(rename = "models:read")]
    ModelsRead,
    #[serde(rename = "models:write")]
    ModelsWrite,
    #[serde(rename = "packages:read")]
    PackagesRead,
    #[serde(rename = "packages:write")]
    PackagesWrite,
    #[serde(rename = "artifacts:read")]
    ArtifactsRead,
    #[serde(rename = "costs:read")]
    CostsRead,
    #[serde(rename = "notifications:read")]
    NotificationsRead,
    #[serde(rename = "notifications:write")]
    NotificationsWrite,
    #[serde(rename = "webhooks:read")]
    WebhooksRead,
    #[serde(rename = "webhooks:write")]
    WebhooksWrite,
    #[serde(rename = "keys:read")]
    KeysRead,
    #[serde(rename = "keys:write")]
    KeysWrite,
    #[serde(rename = "audit:read")]
    AuditRead,
    /// What only administrators may do; worth nothing to anyone else.
    #[serde(rename = "admin")]
    Admin,
}

impl Scope {
    /// Every scope, `*` first.
    pub const ALL: [Self; 19] = [
        Self::All,
        Self::JobsRead,
        Self::JobsWrite,
        Self::DatasetsRead,
        Self::DatasetsWrite,
        Self::ModelsRead,
        Self::ModelsWrite,
        Self::PackagesRead,
        Self::PackagesWrite,
        Self::ArtifactsRead,
        Self::CostsRead,
        Self::NotificationsRead,
        Self::NotificationsWrite,
        Self::WebhooksRead,
        Self::WebhooksWrite,
        Self::KeysRead,
        Self::KeysWrite,
        Self::AuditRead,
        Self::Admin,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "*",
            Self::JobsRead => "jobs:read",
            Self::JobsWrite => "jobs:write",
            Self::DatasetsRead => "datasets:read",
            Self::DatasetsWrite => "datasets:write",
            Self::ModelsRead => "models:read",
            Self::ModelsWrite => "models:write",
            Self::PackagesRead => "packages:read",
            Self::PackagesWrite => "packages:write",
            Self::ArtifactsRead => "artifacts:read",
            Self::CostsRead => "costs:read",
            Self::NotificationsRead => "notifications:read",
            Self::NotificationsWrite => "notifications:write",
            Self::WebhooksRead => "webhooks:read",
            Self::WebhooksWrite => "webhooks:write",
            Self::KeysRead => "keys:read",
            Self::KeysWrite => "keys:write",
            Self::AuditRead => "audit:read",
            Self::Admin => "admin",
        }
    }

    /// Whether a key with the scopes `granted` may use this one.
    #[must_use]
    pub fn is_in(self, granted: &[Self]) -> bool {
        granted.iter().any(|g| *g == Self::All || *g == self)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A name that is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no scope; there are {all}", all = Scope::ALL.map(Scope::as_str).join(", "))]
pub struct UnknownScope(String);

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|s| s.as_str() == name).ok_or_else(|| UnknownScope(name.to_owned()))
    }
}

/// What a user is to the installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    User,
    /// May also manage users and read everyone's audit log. Sees no more of others' data than anyone else.
    Admin,
}

impl Role {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
        }
    }
}

/// Reply of `GET /api/me`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Me {
    pub id: UserId,
    pub name: String,
    /// First characters of the key this request was made with; absent for a token of the identity provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<String>,
    pub role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// What the key of this request may do.
    pub scopes: Vec<Scope>,
}

/// Body of `POST /api/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(example = json!({"name": "ci", "scopes": ["jobs:read", "jobs:write"], "expires_in": 2_592_000}))]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// What it is for, 1 to 100 characters.
    pub name: String,
    /// What it may do; as much as the key of the request when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<Scope>>,
    /// When it stops; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
    /// The same in seconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u32>,
    /// Whose key, for administrators; the caller's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
}

/// Body of `PATCH /api/keys/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateKey {
    pub name: String,
}

/// A key, without the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyView {
    pub id: KeyId,
    pub user_id: UserId,
    pub name: String,
    /// Its first characters.
    pub prefix: String,
    pub scopes: Vec<Scope>,
    pub created_at: DateTime<Utc>,
    /// To the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Reply of `POST /api/keys`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CreatedKey {
    #[serde(flatten)]
    pub view: KeyView,
    /// The key. Only its hash is kept: it is never shown again.
    pub key: String,
}

impl fmt::Debug for CreatedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreatedKey").field("view", &self.view).finish_non_exhaustive()
    }
}

/// A user as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UserView {
    pub id: UserId,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    pub role: Role,
    /// The identity provider the user comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    pub created_at: DateTime<Utc>,
}

/// Body of `POST /api/users`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(example = json!({"name": "ada", "email": "ada@example.com"}))]
#[serde(deny_unknown_fields)]
pub struct CreateUser {
    /// Unique, 1 to 100 characters.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// `user` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// Body of `PATCH /api/users/{id}`; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateUser {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Empty removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// How an operation ended, for the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Done,
    /// 403.
    Refused,
}

impl Outcome {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
        }
    }
}

/// A row of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditEntry {
    pub id: i64,
    /// Whose thing it is.
    pub user_id: UserId,
    /// Who did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor_id: Option<UserId>,
    /// `user`; `admin`, who acted on a thing of someone else; or `system`.
    pub actor: String,
    /// First characters of the key that was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<String>,
    /// Operation id.
    pub action: String,
    pub resource_kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<String>,
    pub outcome: Outcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// To find it in the logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    pub created_at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_scope_are_one() {
        for scope in Scope::ALL {
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.as_str());
            assert_eq!(scope.as_str().parse(), Ok(scope));
        }
        let error = "jobs".parse::<Scope>().unwrap_err().to_string();
        assert!(error.starts_with("`jobs` is no scope; there are *, jobs:read, jobs:write, "), "{error}");
    }

    #[test]
    fn everything_includes_each_and_nothing_else_does() {
        assert!(Scope::JobsRead.is_in(&[Scope::All]));
        assert!(Scope::JobsRead.is_in(&[Scope::KeysRead, Scope::JobsRead]));
        assert!(!Scope::JobsRead.is_in(&[Scope::JobsWrite]) && !Scope::JobsRead.is_in(&[]));
    }
}
