//! A job's live messages, in order and without gaps, over whatever works: WebSocket, else server-sent
//! events, else polling. After a disconnect it goes on behind the last message.

use crate::{
    api::Api,
    error::{CliError, CliResult, Exit},
};
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};
use wire::{JobId, event::StreamMessage};

/// Unreachable for this long: give up. The job itself goes on.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
pub(crate) const FIRST_WAIT: Duration = Duration::from_millis(200);
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_secs(1);
const CONNECT: Duration = Duration::from_secs(10);
/// The server sends something, if only a ping, more often than this.
pub(crate) const SILENCE: Duration = Duration::from_secs(75);

type Messages = BoxStream<'static, Result<StreamMessage, String>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    WebSocket,
    ServerSentEvents,
    Polling,
}

impl Transport {
    const fn next(self) -> Self {
        match self {
            Self::WebSocket => Self::ServerSentEvents,
            Self::ServerSentEvents | Self::Polling => Self::Polling,
        }
    }
}

/// The live messages of one job.
pub struct Live {
    api: Api,
    url: String,
    key: SecretString,
    job: JobId,
    after: i64,
    transport: Transport,
    open: Option<Messages>,
    polled: VecDeque<StreamMessage>,
    last_contact: Instant,
    wait: Duration,
    /// Got a message since the connection was made.
    delivered: bool,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("job", &self.job).field("after", &self.after).finish_non_exhaustive()
    }
}

/// What the caller hears.
#[derive(Debug)]
pub enum Heard {
    Message(Box<StreamMessage>),
    /// Contact was lost; it is being restored.
    Lost(String),
}

impl Live {
    #[must_use]
    pub fn new(api: Api, url: String, key: SecretString, job: JobId) -> Self {
        // TLS for WebSockets is not linked in; server-sent events go through the HTTP client, which has it.
        let transport = if url.starts_with("http://") { Transport::WebSocket } else { Transport::ServerSentEvents };
        Self {
            api,
            url,
            key,
            job,
            after: 0,
            transport,
            open: None,
            polled: VecDeque::new(),
            last_contact: Instant::now(),
            wait: FIRST_WAIT,
            delivered: false,
        }
    }

    /// The next message. Fails when the server stays away too long or refuses.
    pub async fn next(&mut self) -> CliResult<Heard> {
        loop {
            if let Some(message) = self.polled.pop_front() {
                return Ok(self.heard(message));
            }
            if self.transport == Transport::Polling {
                match self.poll().await {
                    Ok(()) => continue,
                    Err(e) if e.exit == Exit::Unreachable => return self.lost(e.message).await,
                    Err(e) => return Err(e),
                }
            }
            let Some(open) = &mut self.open else {
                match self.connect().await {
                    Ok(stream) => self.open = Some(stream),
                    Err(Refusal::Transport) => self.transport = self.transport.next(),
                    Err(Refusal::Final(e)) => return Err(e),
                    Err(Refusal::Away(why)) => return self.lost(why).await,
                }
                continue;
            };
            let heard = tokio::time::timeout(SILENCE, open.next()).await;
            match heard {
                // Told twice after a reconnection.
                Ok(Some(Ok(message))) if message.id <= self.after => {}
                Ok(Some(Ok(message))) => return Ok(self.heard(message)),
                Ok(Some(Err(why))) => return self.lost(why).await,
                Ok(None) => return self.lost("the server closed the stream".into()).await,
                Err(_) => return self.lost("the server fell silent".into()).await,
            }
        }
    }

    fn heard(&mut self, message: StreamMessage) -> Heard {
        self.after = message.id;
        self.last_contact = Instant::now();
        self.wait = FIRST_WAIT;
        self.delivered = true;
        Heard::Message(Box::new(message))
    }

    async fn lost(&mut self, why: String) -> CliResult<Heard> {
        self.open = None;
        if !self.delivered && self.last_contact.elapsed() > Duration::from_secs(20) {
            // A proxy that swallows this transport; another one may get through.
            self.transport = self.transport.next();
        }
        self.delivered = false;
        if self.last_contact.elapsed() > PATIENCE {
            return Err(CliError::new(
                Exit::Unreachable,
                format!("no contact with Hone for {} s: {why}", PATIENCE.as_secs()),
            )
            .hint("the job may well go on; `hone jobs show` tells once Hone is back"));
        }
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        Ok(Heard::Lost(why))
    }

    async fn poll(&mut self) -> CliResult {
        let page = self.api.events(self.job, self.after).await?;
        self.last_contact = Instant::now();
        self.polled.extend(page.items);
        if self.polled.is_empty() {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Messages, Refusal> {
        match self.transport {
            Transport::WebSocket => self.web_socket().await,
            Transport::ServerSentEvents | Transport::Polling => self.server_sent_events().await,
        }
    }

    async fn web_socket(&self) -> Result<Messages, Refusal> {
        let address = self.url.replacen("http://", "ws://", 1);
        let url = format!("{}/ws/training/{}?after={}", address.trim_end_matches('/'), self.job, self.after);
        let mut request = url.into_client_request().map_err(|_| Refusal::Transport)?;
        let bearer = format!("Bearer {}", self.key.expose_secret());
        let bearer = bearer.parse().map_err(|_| Refusal::Transport)?;
        request.headers_mut().insert("authorization", bearer);
        let connected = tokio::time::timeout(CONNECT, tokio_tungstenite::connect_async(request)).await;
        let (socket, _) = match connected {
            Err(_) => return Err(Refusal::Away("it did not answer in time".into())),
            Ok(Err(tungstenite::Error::Http(reply))) => {
                return Err(refusal(reply.status().as_u16(), reply.body().as_deref()));
            }
            Ok(Err(tungstenite::Error::Io(e))) => return Err(Refusal::Away(e.to_string())),
            Ok(Err(_)) => return Err(Refusal::Transport),
            Ok(Ok(connected)) => connected,
        };
        let messages = socket.filter_map(|frame| async {
            match frame {
                Ok(Message::Text(text)) => Some(parse(&text)),
                Ok(_) => None,
                Err(e) => Some(Err(e.to_string())),
            }
        });
        Ok(messages.boxed())
    }

    async fn server_sent_events(&self) -> Result<Messages, Refusal> {
        let path = format!("/training/jobs/{}/events", self.job);
        let request = self.api.client.request(Method::GET, &path).map_err(|e| Refusal::Final(e.into()))?;
        let request = request.header("accept", "text/event-stream").header("last-event-id", self.after.to_string());
        let reply = request.send().await.map_err(|e| Refusal::Away(e.to_string()))?;
        let status = reply.status().as_u16();
        if status != 200 {
            return Err(refusal(status, Some(&reply.bytes().await.unwrap_or_default())));
        }
        let is_stream =
            reply.headers().get("content-type").is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream"));
        if !is_stream {
            return Err(Refusal::Transport);
        }
        let chunks = reply.bytes_stream().map_err(|e| e.to_string());
        Ok(lines(chunks).filter_map(|line| async { data(line) }).boxed())
    }
}

pub(crate) enum Refusal {
    /// This transport does not work here.
    Transport,
    /// Nobody there now.
    Away(String),
    Final(CliError),
}

pub(crate) fn refusal(status: u16, body: Option<&[u8]>) -> Refusal {
    let problem = body.and_then(|b| serde_json::from_slice::<wire::Problem>(b).ok());
    match (status, problem) {
        (429 | 500..=599, problem) => {
            Refusal::Away(problem.map_or_else(|| format!("it answered {status}"), |p| p.detail))
        }
        (401 | 403 | 404, Some(problem)) => Refusal::Final(problem.into()),
        _ => Refusal::Transport,
    }
}

fn parse(text: &str) -> Result<StreamMessage, String> {
    serde_json::from_str(text).map_err(|e| format!("a message cannot be read: {e}"))
}

/// The message of a `data:` line; other lines (ids, comments, blank ones) carry nothing we need.
fn data(line: Result<String, String>) -> Option<Result<StreamMessage, String>> {
    match line {
        Err(e) => Some(Err(e)),
        Ok(line) => line.strip_prefix("data:").map(|text| parse(text.trim())),
    }
}

/// Splits a byte stream into lines. A line longer than 4 MiB ends the stream.
pub(crate) fn lines<S, B>(chunks: S) -> impl Stream<Item = Result<String, String>> + Send
where
    S: Stream<Item = Result<B, String>> + Send + 'static,
    B: AsRef<[u8]> + Send,
{
    const LONGEST: usize = 4 << 20;
    let state = (chunks.boxed(), Vec::<u8>::new());
    futures::stream::unfold(state, |(mut chunks, mut buffer)| async move {
        loop {
            if let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                return Some((Ok(text), (chunks, buffer)));
            }
            if buffer.len() > LONGEST {
                return Some((Err("a line of the stream is too long".into()), (chunks, Vec::new())));
            }
            match chunks.next().await {
                Some(Ok(chunk)) => buffer.extend_from_slice(chunk.as_ref()),
                Some(Err(e)) => return Some((Err(e), (chunks, Vec::new()))),
                None => return None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn event_streams_are_read_across_chunk_boundaries() {
        let message = r#"{"id":3,"job_id":"0190a5c8-0000-7000-8000-000000000000","attempt":1,"stream":"state","state":"queued","at":"2026-01-01T00:00:00Z","failure":null}"#;
        let text = format!(": hello\n\nid: 3\ndata: {message}\n\n");
        let (a, b) = text.split_at(40);
        let chunks = futures::stream::iter([Ok(a.as_bytes().to_vec()), Ok(b.as_bytes().to_vec())]);
        let found: Vec<_> = lines(chunks).filter_map(|l| async { data(l) }).collect().await;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].as_ref().unwrap().id, 3);
    }

    #[test]
    fn a_missing_job_ends_the_stream_and_an_unavailable_server_does_not() {
        let problem = serde_json::to_vec(&wire::Problem::new(wire::Code::NotFound, "no such job")).unwrap();
        assert!(matches!(refusal(404, Some(&problem)), Refusal::Final(e) if e.exit == Exit::NotFound));
        assert!(matches!(refusal(503, None), Refusal::Away(_)));
        assert!(matches!(refusal(404, None), Refusal::Transport));
    }
}
