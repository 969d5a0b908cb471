//! Blocking parsers (crate `dataset`, JSON) fed from storage through a bounded channel: constant memory.

use crate::{
    digest::{read, read_failed},
    gateway::{Gateway, store_failed},
    keys::Key,
};
use bytes::Bytes;
use futures::StreamExt;
use service::{ApiError, ApiResult};
use std::{
    io::{self, Read},
    sync::Arc,
};
use tokio::sync::mpsc;

/// Chunks on their way to the parser.
const QUEUE: usize = 8;

/// Runs `parse` over the object when its turn has come.
pub async fn parse_object<T, F>(gateway: &Gateway, key: &Key, parse: F) -> ApiResult<T>
where
    T: Send + 'static,
    F: FnOnce(ChannelReader) -> io::Result<T> + Send + 'static,
{
    let _turn = gateway.parsing_turn().await?;
    parse_now(gateway, key, parse).await
}

/// Runs `parse` over the object on a thread of its own. It may stop reading early. The caller has a turn.
pub async fn parse_now<T, F>(gateway: &Gateway, key: &Key, parse: F) -> ApiResult<T>
where
    T: Send + 'static,
    F: FnOnce(ChannelReader) -> io::Result<T> + Send + 'static,
{
    let place = gateway.place(key);
    let head = gateway.store.head(&place).await.map_err(|e| store_failed(e, key))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let reader = ChannelReader { receiver, chunk: Bytes::new(), done: false };
    let parser = tokio::task::spawn_blocking(move || parse(reader));
    let mut chunks = read(Arc::clone(&gateway.store), place, head.size);
    while let Some(chunk) = chunks.next().await {
        // The parser is gone when it has seen enough.
        if sender.send(Feed::Chunk(chunk)).await.is_err() {
            break;
        }
    }
    let _ = sender.send(Feed::End).await;
    drop(sender);
    let parsed = parser.await.map_err(ApiError::internal)?;
    parsed.map_err(|e| read_failed(e, key))
}

#[derive(Debug)]
enum Feed {
    Chunk(io::Result<Bytes>),
    /// Tells a complete object from a request that was dropped in the middle.
    End,
}

/// Reads what the async side sends. For blocking threads only.
#[derive(Debug)]
pub struct ChannelReader {
    receiver: mpsc::Receiver<Feed>,
    chunk: Bytes,
    done: bool,
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() && !self.done {
            match self.receiver.blocking_recv() {
                Some(Feed::Chunk(chunk)) => self.chunk = chunk?,
                Some(Feed::End) => self.done = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the request was dropped")),
            }
        }
        let n = buffer.len().min(self.chunk.len());
        let (target, source) = (buffer.get_mut(..n).unwrap_or_default(), self.chunk.split_to(n));
        target.copy_from_slice(&source);
        Ok(n)
    }
}
