//! The stream that the log is written to. A separate thread writes, so that no request waits for the stream's reader.
//!
//! The thread of `tracing-appender` does the same, but at the exit it reports a full queue on stdout, and waits for ever if
//! nobody reads that (`unread_log_does_not_hold_the_exit`).

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

/// How many lines are queued for the stream before lines are lost. A stalled reader must not stall the service.
const MAX_QUEUED_LINES: usize = 4096;
/// How long a line waits for others, so that they are written together. Otherwise a busy process would wake the thread
/// and write once for each request.
const BATCH_DELAY: Duration = Duration::from_millis(2);
/// How many bytes are written at a time, in whole lines. A pipe takes this much in one piece (`PIPE_BUF`), so that the
/// lines of processes that share a pipe never mix.
const WRITE_SIZE: usize = 4096;
/// How long the process waits at its end until the last lines are written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The stream that a process logs to. `admin` logs to stderr, because its results go to stdout.
#[derive(Debug, Clone, Copy)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Write for Stream {
    /// Never fails, because a closed stream must not take the process down.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let _ = match self {
            Self::Stdout => io::stdout().lock().write_all(lines).and_then(|()| io::stdout().flush()),
            Self::Stderr => io::stderr().lock().write_all(lines),
        };
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Queues lines for a stream without blocking. A line that does not fit into the queue is lost and counted.
#[derive(Clone)]
pub struct Lines {
    /// None marks the end.
    sender: SyncSender<Option<Vec<u8>>>,
    lost: Arc<AtomicU64>,
}

impl Lines {
    /// Starts the thread that writes lines to a stream, until the returned [`Writing`] is dropped.
    pub fn to(stream: Stream) -> (Self, Writing) {
        let (sender, receiver) = sync_channel(MAX_QUEUED_LINES);
        let (ended, written) = channel();
        thread::spawn(move || {
            write(&receiver, stream);
            // Fails if the process no longer waits for it.
            let _ = ended.send(());
        });
        let lines = Self { sender, lost: Arc::default() };
        (lines.clone(), Writing { lines, written })
    }

    /// Queues a whole line, including its newline.
    pub fn send(&self, line: Vec<u8>) {
        if self.sender.try_send(Some(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many lines have been lost so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.send(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the queued lines until the end marker.
fn write(receiver: &Receiver<Option<Vec<u8>>>, stream: Stream) {
    let mut pieces = BufWriter::with_capacity(WRITE_SIZE, stream);
    while let Ok(Some(first)) = receiver.recv() {
        thread::sleep(BATCH_DELAY);
        let mut ended = false;
        let more = receiver.try_iter().map_while(|line| {
            ended = line.is_none();
            line
        });
        for line in std::iter::once(first).chain(more) {
            // Writing to a `Stream` never fails.
            let _ = pieces.write_all(&line);
        }
        let _ = pieces.flush();
        if ended {
            return;
        }
    }
}

/// Waits, when dropped, until the earlier lines are written. It stops waiting after a while, because the reader may
/// have stalled.
pub struct Writing {
    lines: Lines,
    written: Receiver<()>,
}

impl Drop for Writing {
    fn drop(&mut self) {
        const TRIES: u32 = 100;
        for _ in 0..TRIES {
            if self.lines.sender.try_send(None).is_ok() {
                let _ = self.written.recv_timeout(FLUSH_TIMEOUT);
                return;
            }
            thread::sleep(FLUSH_TIMEOUT / TRIES);
        }
    }
}
