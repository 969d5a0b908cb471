//! Server-sent events. Every message carries its id, which browsers send back as `Last-Event-ID`.

use super::{Item, KEEP_ALIVE, tail::Line};
use actix_web::HttpResponse;
use bytes::Bytes;
use futures::stream;
use std::{convert::Infallible, time::Duration};
use tokio::sync::mpsc;

/// What a browser waits before it reconnects.
const RECONNECT: Duration = Duration::from_secs(2);

#[must_use]
pub fn response(items: mpsc::Receiver<Item>) -> HttpResponse {
    let first = Bytes::from(format!("retry: {}\n\n", RECONNECT.as_millis()));
    let body = stream::unfold((items, Some(first), false), |(mut items, first, ended)| async move {
        if ended {
            return None;
        }
        if let Some(first) = first {
            return Some((Ok::<_, Infallible>(first), (items, None, false)));
        }
        let (chunk, ended) = match tokio::time::timeout(KEEP_ALIVE, items.recv()).await {
            Ok(Some(Item::Message(line))) => (event(&line), false),
            // Told apart from a broken connection, so that a browser does not come back for more.
            Ok(Some(Item::End)) => (Bytes::from_static(b"event: end\ndata: {}\n\n"), true),
            Ok(None) => return None,
            Err(_) => (Bytes::from_static(b": keep-alive\n\n"), false),
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
fn event(line: &Line) -> Bytes {
    Bytes::from(format!("id: {}\ndata: {}\n\n", line.id, line.text))
}
