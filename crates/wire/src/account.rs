//! Users, their keys, and what a key may do.

use crate::ids::UserId;
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
    /// First characters of the key this request was made with.
    pub key_prefix: String,
    pub role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// What the key of this request may do.
    pub scopes: Vec<Scope>,
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
