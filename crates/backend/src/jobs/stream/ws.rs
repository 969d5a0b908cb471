//! The WebSocket: one text frame per message, pings, and a normal close after the job's last state.

use super::{Item, KEEP_ALIVE};
use actix_web::{HttpRequest, HttpResponse, web};
use actix_ws::{AggregatedMessage, CloseCode, CloseReason, Closed, MessageStream, Session};
use futures::StreamExt;
use std::{
    future::Future,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// Clients have nothing to say beyond control frames.
const MAX_FRAME: usize = 4 << 10;

/// Upgrades the connection and serves `items` in the background.
pub fn response(
    req: &HttpRequest,
    body: web::Payload,
    items: mpsc::Receiver<Item>,
    after: i64,
    slow: Duration,
) -> Result<HttpResponse, actix_web::Error> {
    let (response, session, incoming) = actix_ws::handle(req, body)?;
    actix_web::rt::spawn(serve(session, incoming.max_frame_size(MAX_FRAME), items, after, slow));
    Ok(response)
}

async fn serve(
    mut session: Session,
    incoming: MessageStream,
    mut items: mpsc::Receiver<Item>,
    after: i64,
    slow: Duration,
) {
    let mut incoming = incoming.aggregate_continuations().max_continuation_size(MAX_FRAME);
    let mut last = after;
    let mut heard = Instant::now();
    let mut ping = tokio::time::interval(KEEP_ALIVE);
    let reason = loop {
        let done = tokio::select! {
            item = items.recv() => match item {
                Some(Item::Message(line)) => {
                    last = line.id;
                    in_time(slow, session.text(line.text.clone())).await
                }
                Some(Item::End) => break close(CloseCode::Normal, "the job is over".into()),
                None => break resume(last),
            },
            frame = incoming.next() => {
                heard = Instant::now();
                match frame {
                    Some(Ok(AggregatedMessage::Ping(bytes))) => in_time(slow, session.pong(&bytes)).await,
                    Some(Ok(AggregatedMessage::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => Ok(()),
                }
            }
            _ = ping.tick() => {
                if heard.elapsed() > 3 * KEEP_ALIVE {
                    break resume(last);
                }
                in_time(slow, session.ping(b"")).await
            }
        };
        if done.is_err() {
            break resume(last);
        }
    };
    // A client that does not read gets no farewell either.
    let _ = tokio::time::timeout(KEEP_ALIVE, session.close(Some(reason))).await;
}

/// A client that takes nothing is given up.
async fn in_time(slow: Duration, send: impl Future<Output = Result<(), Closed>>) -> Result<(), Closed> {
    tokio::time::timeout(slow, send).await.unwrap_or(Err(Closed))
}

fn close(code: CloseCode, text: String) -> CloseReason {
    CloseReason { code, description: Some(text) }
}

fn resume(last: i64) -> CloseReason {
    close(CloseCode::Again, format!("too slow; resume with ?after={last}"))
}
