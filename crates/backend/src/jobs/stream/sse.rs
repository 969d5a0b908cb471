//! Server-sent events. Every message carries its id, which browsers send back as `Last-Event-ID`.

use super::{Item, KEEP_ALIVE};
use crate::notifications::stream::Item as News;
use actix_web::HttpResponse;
use bytes::Bytes;
use futures::stream;
use std::{convert::Infallible, time::Duration};
use tokio::sync::mpsc;

/// What a browser waits before it reconnects.
const RECONNECT: Duration = Duration::from_secs(2);

/// What a stream passes on, as server-sent events.
pub trait Event: Send + 'static {
    /// The event, and whether it is the last one.
    fn render(&self) -> (Bytes, Last);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    Yes,
    No,
}

#[must_use]
pub fn response<T: Event>(items: mpsc::Receiver<T>) -> HttpResponse {
    let first = Bytes::from(format!("retry: {}\n\n", RECONNECT.as_millis()));
    let body = stream::unfold((items, Some(first), Last::No), |(mut items, first, ended)| async move {
        if ended == Last::Yes {
            return None;
        }
        if let Some(first) = first {
            return Some((Ok::<_, Infallible>(first), (items, None, Last::No)));
        }
        let (chunk, ended) = match tokio::time::timeout(KEEP_ALIVE, items.recv()).await {
            Ok(Some(item)) => item.render(),
            Ok(None) => return None,
            Err(_) => (Bytes::from_static(b": keep-alive\n\n"), Last::No),
        };
        Some((Ok(chunk), (items, None, ended)))
    });
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("cache-control", "no-store"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(body)
}

/// JSON has no raw newlines, so one data line is enough.
fn message(id: i64, json: &str) -> Bytes {
    Bytes::from(format!("id: {id}\ndata: {json}\n\n"))
}

impl Event for Item {
    fn render(&self) -> (Bytes, Last) {
        match self {
            Self::Message(line) => (message(line.id, &line.text), Last::No),
            // Told apart from a broken connection, so that a browser does not come back for more.
            Self::End => (Bytes::from_static(b"event: end\ndata: {}\n\n"), Last::Yes),
        }
    }
}

impl Event for News {
    fn render(&self) -> (Bytes, Last) {
        let chunk = match self {
            // An id that a browser remembers before there is any news.
            Self::Begin(position) => Bytes::from(format!("id: {position}\nevent: begin\ndata: {{}}\n\n")),
            Self::News(content) => message(content.position, &serde_json::to_string(content).unwrap_or_default()),
        };
        (chunk, Last::No)
    }
}
