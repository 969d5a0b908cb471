//! Blocking parsers (crate `dataset`, JSON) fed from storage through a bounded channel: constant memory.

use crate::{
    digest::{read, read_failed},
    gateway::{Gateway, store_failed},
    intake::{self, Declared},
    keys::Key,
};
use bytes::Bytes;
use futures::{StreamExt, future, stream};
use service::{ApiError, ApiResult};
use std::{
    io::{self, BufWriter, Read, Write},
    sync::Arc,
};
use tokio::sync::mpsc;
use wire::{problem::Code, storage::ObjectInfo};

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

/// Bytes that a rewriting parser sends at once.
const CHUNK: usize = 1 << 16;

/// Runs `work` over the object `from` when its turn has come, and stores what it writes as `to`.
pub async fn rewrite<F>(gateway: &Arc<Gateway>, from: &Key, to: &Key, work: F) -> ApiResult<ObjectInfo>
where
    F: FnOnce(ChannelReader, BufWriter<ChannelWriter>) -> io::Result<u64> + Send + 'static,
{
    let _turn = gateway.parsing_turn().await?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    // Storing asks again after the end.
    let body = stream::unfold(receiver, async |mut r| r.recv().await.map(|chunk| (chunk, r))).fuse();
    let worked = parse_now(gateway, from, move |reader| {
        let done = work(reader, BufWriter::with_capacity(CHUNK, ChannelWriter { sender: sender.clone() }));
        if done.is_err() {
            // An error in the body keeps what was written so far from becoming an object.
            let _ = sender.blocking_send(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(done)
    });
    let (worked, stored) = future::join(worked, intake::receive(gateway, to, Declared::default(), body)).await;
    match worked? {
        Ok(_) => stored,
        // When storing fails, the parser only sees that nobody reads any more.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe && stored.is_err() => stored,
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(ApiError::new(Code::Invalid, format!("`{from}`: {e}"))),
        Err(e) => Err(read_failed(e, from)),
    }
}

/// Hands what is written to the async side. For blocking threads only.
#[derive(Debug)]
pub struct ChannelWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.sender.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "what is written is not stored any more"))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
