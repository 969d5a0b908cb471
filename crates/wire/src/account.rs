//! Users and their keys.

use crate::ids::UserId;
use serde::{Deserialize, Serialize};

/// Reply of `GET /api/me`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Me {
    pub id: UserId,
    pub name: String,
    /// First characters of the key this request was made with.
    pub key_prefix: String,
}
