//! Bytes of any protocol. What a client sends at once counts as a request, what comes back next as its reply.

use super::{Fault, Shared, link::Direction, rule::Hit};
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const PIECE: usize = 64 << 10;

pub(super) async fn serve(client: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let (mut from_server, mut to_server) = shared.connect().await?;
    let (mut from_client, mut to_client) = client.into_split();
    // What is to happen to the next piece that the server sends.
    let reply_fault: Mutex<Option<Hit>> = Mutex::default();
    let requests = async {
        let mut buffer = vec![0; PIECE];
        loop {
            let n = from_client.read(&mut buffer).await?;
            let Some(piece @ [_, ..]) = buffer.get_mut(..n) else { return to_server.shutdown().await };
            let hit = shared.next(piece);
            match hit.as_ref().map(|hit| &hit.fault) {
                None | Some(Fault::Answer(..) | Fault::Duplicate | Fault::Reorder) => {}
                Some(Fault::LoseReply | Fault::CutReply(_) | Fault::FlipReply | Fault::Hang) => {
                    *reply_fault.lock().unwrap_or_else(PoisonError::into_inner) = hit;
                }
                Some(Fault::Delay(wait)) => {
                    if hit.as_ref().is_some_and(|hit| shared.happens(hit)) {
                        tokio::time::sleep(*wait).await;
                    }
                }
                Some(Fault::LoseRequest) => {
                    if hit.as_ref().is_some_and(|hit| shared.happens(hit)) {
                        return Ok(());
                    }
                }
                Some(Fault::CutRequest(after)) => {
                    let after = usize::try_from(*after).unwrap_or(usize::MAX);
                    if after < piece.len() && hit.as_ref().is_some_and(|hit| shared.happens(hit)) {
                        let start = piece.get(..after).unwrap_or_default();
                        return shared.carry(Direction::Request, &mut to_server, start).await;
                    }
                }
                Some(Fault::FlipRequest) => {
                    if let Some(hit) = hit.as_ref().filter(|hit| shared.happens(hit)) {
                        flip(piece, hit.random);
                    }
                }
            }
            shared.carry(Direction::Request, &mut to_server, piece).await?;
        }
    };
    let replies = async {
        let mut buffer = vec![0; PIECE];
        loop {
            let n = from_server.read(&mut buffer).await?;
            let Some(piece @ [_, ..]) = buffer.get_mut(..n) else { return to_client.shutdown().await };
            let hit = reply_fault.lock().unwrap_or_else(PoisonError::into_inner).take();
            match hit.filter(|hit| shared.happens(hit)) {
                Some(Hit { fault: Fault::LoseReply, .. }) => return Ok(()),
                Some(Hit { fault: Fault::Hang, .. }) => std::future::pending().await,
                Some(Hit { fault: Fault::CutReply(after), .. }) => {
                    let after = usize::try_from(after).unwrap_or(usize::MAX).min(piece.len());
                    let start = piece.get(..after).unwrap_or_default();
                    return shared.carry(Direction::Reply, &mut to_client, start).await;
                }
                Some(Hit { fault: Fault::FlipReply, random, .. }) => flip(piece, random),
                _ => {}
            }
            shared.carry(Direction::Reply, &mut to_client, piece).await?;
        }
    };
    tokio::select! {
        ended = requests => ended,
        ended = replies => ended,
    }
}

/// Turns one bit of `bytes`.
pub(super) fn flip(bytes: &mut [u8], random: u64) {
    let Ok(len) = u64::try_from(bytes.len()) else { return };
    let place = usize::try_from(random.checked_rem(len).unwrap_or_default()).unwrap_or_default();
    if let Some(byte) = bytes.get_mut(place) {
        *byte ^= 1 << ((random >> 32) & 7);
    }
}
