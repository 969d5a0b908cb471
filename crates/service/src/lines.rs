//! Log lines on their way to standard error. Whoever reads them there may stop reading or go away; neither may stop a
//! service, so a thread of its own writes them, and lines for which there is no room are counted and dropped.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for the reader.
const WAITING: usize = 8192;
/// For the last lines, at the end.
const FAREWELL: Duration = Duration::from_secs(1);

enum Message {
    Line(Vec<u8>),
    /// Everything before it is written once this is answered.
    Flush(SyncSender<()>),
}

/// Cheap to clone; clones write to the same place.
#[derive(Debug, Clone)]
pub struct Lines {
    sender: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    /// Lines for `out`, written by a new thread.
    pub fn to(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(WAITING);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = Arc::clone(&dropped);
        std::thread::Builder::new().name("log".into()).spawn(move || write(out, &receiver, &lost))?;
        Ok(Self { sender, dropped })
    }

    /// Waits until what was logged before is written, but not for a reader that does not read.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.sender.try_send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(FAREWELL);
        }
    }
}

fn write(mut out: impl Write, lines: &Receiver<Message>, dropped: &AtomicU64) {
    // Errors end nothing: the reader may be gone, and the lines with it.
    for message in lines {
        match message {
            Message::Line(line) => {
                let _ = out.write_all(&line);
                let lost = dropped.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let _ = writeln!(out, "{lost} lines of this log were dropped: they were not read in time");
                }
            }
            Message::Flush(done) => {
                let _ = out.flush();
                let _ = done.send(());
            }
        }
    }
}

impl Write for Lines {
    /// A whole line at a time, which is how the formatter writes.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.sender.try_send(Message::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{BufRead, BufReader},
        time::Instant,
    };

    #[test]
    fn a_reader_that_stops_reading_costs_lines_and_no_time() {
        let (reader, writer) = io::pipe().unwrap();
        let mut lines = Lines::to(writer).unwrap();
        let began = Instant::now();
        let line = [&[b'x'; 999][..], b"\n"].concat();
        for _ in 0..3 * WAITING {
            lines.write_all(&line).unwrap();
        }
        lines.flush();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        // When it reads again it hears of the loss.
        let told = BufReader::new(reader).lines().map_while(Result::ok).find(|l| l.contains("were dropped"));
        assert!(told.is_some());
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut lines = Lines::to(writer).unwrap();
        lines.write_all(b"nobody hears this\n").unwrap();
        lines.flush();
    }
}
