//! Typed identifiers: two bare `Uuid`s never meet in one signature.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

macro_rules! typed_id {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new time-ordered id (UUID version 7).
            #[must_use]
            pub fn random() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Uuid::from_str(s).map(Self)
            }
        }
    )+};
}

typed_id! {
    /// A training job.
    JobId,
    /// A dataset.
    DatasetId,
    /// A user, which is also the tenant.
    UserId,
    /// A training package.
    PackageId,
    /// A version of a training package.
    VersionId,
    /// What a job made.
    ArtifactId,
    /// A notification.
    NotificationId,
    /// A webhook.
    WebhookId,
    /// A message for a webhook.
    DeliveryId,
    /// A model on its way into the registry.
    PullId,
    /// An API key.
    KeyId,
    /// One running trainer process; an attempt accepts events from the first instance that claims it.
    InstanceId,
}
