//! The line that all connections share: how fast it is and whether anything passes.

use super::Shared;
use std::{io, num::NonZeroU64, time::Duration};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Whether anything passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Way {
    #[default]
    Open,
    /// Requests arrive, replies wait.
    HoldReplies,
    /// Nothing arrives, and nobody is told: a partition. What was sent arrives when it is over.
    Hold,
    /// Connections end, also new ones as soon as they are made.
    Refuse,
}

/// Properties of the line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    pub way: Way,
    /// Of every piece of bytes, in each direction.
    pub latency: Duration,
    /// Of every connection, in each direction.
    pub bytes_per_second: Option<NonZeroU64>,
}

impl Link {
    #[must_use]
    pub fn way(way: Way) -> Self {
        Self { way, ..Self::default() }
    }

    #[must_use]
    pub fn slow(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: NonZeroU64::new(bytes_per_second), ..Self::default() }
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Request,
    Reply,
}

impl Shared {
    /// Writes `bytes` as the line allows it.
    pub(super) async fn carry<W>(&self, direction: Direction, writer: &mut W, bytes: &[u8]) -> io::Result<()>
    where
        W: AsyncWrite + Unpin + ?Sized,
    {
        let held = |link: &Link| match link.way {
            Way::Open | Way::Refuse => false,
            Way::HoldReplies => direction == Direction::Reply,
            Way::Hold => true,
        };
        let mut line = self.link.subscribe();
        // A tenth of a second at a time, so that a slow line is slow and not jerky.
        let mut rest = bytes;
        while !rest.is_empty() {
            let link = *line.wait_for(|link| !held(link)).await.map_err(io::Error::other)?;
            tokio::time::sleep(link.latency).await;
            let share = link.bytes_per_second.map_or(u64::MAX, |rate| rate.get().div_ceil(10));
            let size = usize::try_from(share).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at(size);
            if link.bytes_per_second.is_some() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            writer.write_all(now).await?;
            rest = later;
        }
        writer.flush().await
    }
}
