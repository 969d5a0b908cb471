//! What OpenAI's clients tell about a request beside its content.

use actix_web::HttpRequest;

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
