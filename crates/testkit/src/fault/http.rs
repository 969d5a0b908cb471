//! Requests of HTTP/1.1, one after the other on each connection. Bodies pass as they come; only a request that is
//! carried out twice or later is kept in memory.

use super::{Fault, Reader, Shared, Writer, link::Direction, raw::flip, rule::Hit};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Longest head of a message.
const MAX_HEAD: usize = 64 << 10;
/// How long a request waits for another one to overtake it.
const OVERTAKE: Duration = Duration::from_millis(200);
const PIECE: u64 = 64 << 10;

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunked,
    UntilClose,
}

impl Body {
    /// A body of unknown length counts as endless.
    const fn is_longer(self, bytes: u64) -> bool {
        match self {
            Self::Length(length) => length > bytes,
            Self::Chunked | Self::UntilClose => true,
        }
    }
}

/// What happens to a body on its way.
#[derive(Debug, Default)]
struct Mangle {
    cut: Option<u64>,
    flip: Option<u64>,
}

struct Server {
    reader: BufReader<Reader>,
    writer: Writer,
}

/// Whether the connection is good for another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Open,
    Closed,
}

pub(super) async fn serve(client: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let (reader, mut writer) = client.into_split();
    let mut reader = BufReader::new(reader);
    let mut server: Option<Server> = None;
    loop {
        // A server that ends an idle connection ends the client's, as it would without us.
        let left = async {
            match &mut server {
                Some(server) => server.reader.fill_buf().await.map(drop),
                None => std::future::pending().await,
            }
        };
        let head = tokio::select! {
            head = read_head(&mut reader) => head?,
            _ = left => None,
        };
        let Some(head) = head else { break };
        if exchange(shared, &head, &mut reader, &mut writer, &mut server).await? == After::Closed {
            break;
        }
        shared.answered.notify_waiters();
    }
    writer.shutdown().await
}

async fn exchange(
    shared: &Arc<Shared>,
    head: &[u8],
    client: &mut BufReader<OwnedReadHalf>,
    back: &mut OwnedWriteHalf,
    server: &mut Option<Server>,
) -> io::Result<After> {
    let first_line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let body = request_body(head);
    let hit = shared.next(first_line);
    let mut mangle = Mangle::default();
    // Kept when it has to be sent more than once or not at once.
    let mut kept = None;
    match hit.as_ref().map(|hit| &hit.fault) {
        Some(Fault::Delay(wait)) if happens(shared, &hit) => tokio::time::sleep(*wait).await,
        Some(Fault::LoseRequest) if happens(shared, &hit) => return Ok(After::Closed),
        Some(Fault::Hang) if happens(shared, &hit) => std::future::pending().await,
        Some(Fault::Answer(status, text)) if happens(shared, &hit) => {
            copy(shared, Direction::Request, client, &mut tokio::io::sink(), body, &mut Mangle::default()).await?;
            let reply = format!(
                "HTTP/1.1 {status} Fault\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
                text.len()
            );
            shared.carry(Direction::Reply, back, reply.as_bytes()).await?;
            return Ok(After::Open);
        }
        Some(Fault::Duplicate) if happens(shared, &hit) => kept = Some(head.to_vec()),
        Some(Fault::Reorder) if happens(shared, &hit) => {
            let mut request = head.to_vec();
            copy(shared, Direction::Request, client, &mut request, body, &mut Mangle::default()).await?;
            let _ = tokio::time::timeout(OVERTAKE, shared.answered.notified()).await;
            kept = Some(request);
        }
        Some(Fault::CutRequest(after)) if body.is_longer(*after) && happens(shared, &hit) => mangle.cut = Some(*after),
        Some(Fault::FlipRequest) if body.is_longer(0) && happens(shared, &hit) => {
            mangle.flip = hit.as_ref().map(|hit| hit.random);
        }
        _ => {}
    }
    if server.is_none() {
        let (reader, writer) = shared.connect().await?;
        *server = Some(Server { reader: BufReader::new(reader), writer });
    }
    let Some(upstream) = server.as_mut() else { return Ok(After::Closed) };

    let fault = hit.as_ref().map(|hit| &hit.fault);
    let mut after = After::Open;
    match (fault, kept) {
        (Some(Fault::Reorder), Some(request)) => {
            shared.carry(Direction::Request, &mut upstream.writer, &request).await?;
        }
        (Some(Fault::Duplicate), Some(mut request)) => {
            copy(shared, Direction::Request, client, &mut request, body, &mut Mangle::default()).await?;
            shared.carry(Direction::Request, &mut upstream.writer, &request).await?;
            let wait = Duration::from_millis(hit.as_ref().map_or(0, |hit| hit.random % 100));
            tokio::spawn(again(Arc::clone(shared), request, wait));
        }
        _ => {
            shared.carry(Direction::Request, &mut upstream.writer, head).await?;
            let cut = mangle.cut.is_some();
            let Server { reader, writer } = &mut *upstream;
            // A server may refuse a request before it has read all of it.
            tokio::select! {
                done = copy(shared, Direction::Request, client, writer, body, &mut mangle) => done?,
                early = reader.fill_buf() => { early?; after = After::Closed; }
            }
            if cut {
                return Ok(After::Closed);
            }
        }
    }
    match answer(shared, head, hit.as_ref(), upstream, client, back).await? {
        After::Open => Ok(after),
        After::Closed => Ok(After::Closed),
    }
}

fn happens(shared: &Shared, hit: &Option<Hit>) -> bool {
    hit.as_ref().is_some_and(|hit| shared.happens(hit))
}

/// Passes the reply on.
async fn answer(
    shared: &Shared,
    request: &[u8],
    hit: Option<&Hit>,
    server: &mut Server,
    client: &mut BufReader<OwnedReadHalf>,
    back: &mut OwnedWriteHalf,
) -> io::Result<After> {
    let Some(head) = read_head(&mut server.reader).await? else { return Ok(After::Closed) };
    let upgraded = status(&head) == 101;
    let body = reply_body(request, &head);
    let mut mangle = Mangle::default();
    match hit.map(|hit| (&hit.fault, hit)) {
        Some((Fault::LoseReply, hit)) if shared.happens(hit) => return Ok(After::Closed),
        Some((Fault::CutReply(after), hit)) if body.is_longer(*after) && shared.happens(hit) => {
            mangle.cut = Some(*after)
        }
        Some((Fault::FlipReply, hit)) if body.is_longer(0) && shared.happens(hit) => mangle.flip = Some(hit.random),
        _ => {}
    }
    shared.carry(Direction::Reply, back, &head).await?;
    if upgraded {
        let both = async {
            let down = relay(shared, Direction::Reply, &mut server.reader, back);
            let up = relay(shared, Direction::Request, client, &mut server.writer);
            tokio::select! { ended = down => ended, ended = up => ended }
        };
        both.await?;
        return Ok(After::Closed);
    }
    let cut = mangle.cut.is_some();
    copy(shared, Direction::Reply, &mut server.reader, back, body, &mut mangle).await?;
    if cut || body == Body::UntilClose || header(&head, "connection").is_some_and(|v| v == "close") {
        return Ok(After::Closed);
    }
    Ok(After::Open)
}

/// Sends a request once more and drops its reply.
async fn again(shared: Arc<Shared>, request: Vec<u8>, wait: Duration) {
    tokio::time::sleep(wait).await;
    let Ok((mut reader, mut writer)) = shared.connect().await else { return };
    if writer.write_all(&request).await.is_ok() {
        let mut reply = vec![0; 1024];
        let _ = tokio::time::timeout(Duration::from_secs(30), reader.read(&mut reply)).await;
    }
}

async fn relay<R, W>(shared: &Shared, direction: Direction, from: &mut R, to: &mut W) -> io::Result<()>
where
    R: AsyncReadExt + Unpin,
    W: AsyncWrite + Unpin + ?Sized,
{
    let mut buffer = vec![0; usize::try_from(PIECE).unwrap_or(usize::MAX)];
    loop {
        let n = from.read(&mut buffer).await?;
        let Some(piece @ [_, ..]) = buffer.get(..n) else { return Ok(()) };
        shared.carry(direction, to, piece).await?;
    }
}

/// The head of the next message up to its empty line; None at the end of the connection.
async fn read_head<R: tokio::io::AsyncRead + Unpin>(reader: &mut BufReader<R>) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    loop {
        let before = head.len();
        let n = reader.read_until(b'\n', &mut head).await?;
        if n == 0 || head.len() > MAX_HEAD {
            return Ok(None);
        }
        if head.get(before..) == Some(b"\r\n".as_slice()) {
            return Ok(Some(head));
        }
    }
}

fn header(head: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(head);
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_ascii_lowercase())
    })
}

fn status(head: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(head.get(..head.len().min(32)).unwrap_or_default()).into_owned();
    text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

fn request_body(head: &[u8]) -> Body {
    if header(head, "transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        return Body::Chunked;
    }
    Body::Length(header(head, "content-length").and_then(|v| v.parse().ok()).unwrap_or(0))
}

fn reply_body(request: &[u8], head: &[u8]) -> Body {
    if request.starts_with(b"HEAD ") || matches!(status(head), 100..=199 | 204 | 304) {
        return Body::Length(0);
    }
    if header(head, "transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        return Body::Chunked;
    }
    header(head, "content-length").and_then(|v| v.parse().ok()).map_or(Body::UntilClose, Body::Length)
}

/// Passes a body on. A cut stops silently; the caller ends the connection.
async fn copy<R, W>(
    shared: &Shared,
    direction: Direction,
    from: &mut BufReader<R>,
    to: &mut W,
    body: Body,
    mangle: &mut Mangle,
) -> io::Result<()>
where
    R: tokio::io::AsyncRead + Unpin,
    W: AsyncWrite + Unpin + ?Sized,
{
    match body {
        Body::Length(length) => pieces(shared, direction, from, to, length, mangle).await,
        Body::UntilClose => pieces(shared, direction, from, to, u64::MAX, mangle).await,
        Body::Chunked => loop {
            let mut line = Vec::new();
            from.read_until(b'\n', &mut line).await?;
            shared.carry(direction, to, &line).await?;
            let text = String::from_utf8_lossy(&line).into_owned();
            let size = u64::from_str_radix(text.split(';').next().unwrap_or_default().trim(), 16);
            match size.map_err(io::Error::other)? {
                0 => {
                    // Trailers, up to the empty line.
                    if let Some(rest) = read_head(from).await? {
                        shared.carry(direction, to, &rest).await?;
                    }
                    return Ok(());
                }
                size => {
                    pieces(shared, direction, from, to, size, mangle).await?;
                    if mangle.cut == Some(0) {
                        return Ok(());
                    }
                    let mut end = [0; 2];
                    from.read_exact(&mut end).await?;
                    shared.carry(direction, to, &end).await?;
                }
            }
        },
    }
}

/// `length` bytes, or what there is until the end of the connection.
async fn pieces<R, W>(
    shared: &Shared,
    direction: Direction,
    from: &mut BufReader<R>,
    to: &mut W,
    length: u64,
    mangle: &mut Mangle,
) -> io::Result<()>
where
    R: tokio::io::AsyncRead + Unpin,
    W: AsyncWrite + Unpin + ?Sized,
{
    let mut left = length;
    let mut buffer = vec![0; usize::try_from(PIECE).unwrap_or(usize::MAX)];
    while left > 0 {
        let most = usize::try_from(left.min(PIECE).min(mangle.cut.unwrap_or(u64::MAX))).unwrap_or(usize::MAX);
        if most == 0 {
            return Ok(());
        }
        let n = from.read(buffer.get_mut(..most).unwrap_or_default()).await?;
        let Some(piece @ [_, ..]) = buffer.get_mut(..n) else {
            return if length == u64::MAX { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        };
        if let Some(random) = mangle.flip.take() {
            flip(piece, random);
        }
        shared.carry(direction, to, piece).await?;
        let passed = u64::try_from(n).unwrap_or(u64::MAX);
        left = left.saturating_sub(passed);
        mangle.cut = mangle.cut.map(|cut| cut.saturating_sub(passed));
    }
    Ok(())
}
