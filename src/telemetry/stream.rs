//! The stream that a log goes to. A thread of its own writes, so that no request waits for whoever reads.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

/// How many lines wait for a reader of the stream before lines are lost: a reader that has stalled must not stall the
/// service.
const MAX_QUEUED_LINES: usize = 4096;
/// How long a line waits for others, so that they are written together: a busy process would otherwise wake the thread and
/// write once for each request.
const BATCH_DELAY: Duration = Duration::from_millis(2);
/// How much is written at a time, in whole lines: what a pipe takes in one piece (`PIPE_BUF`), so that the lines of
/// processes that share one are never mixed.
const WRITE_SIZE: usize = 4096;
/// How long the end of the process waits for its last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a process logs: `admin` keeps stdout for its results.
#[derive(Debug, Clone, Copy)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Write for Stream {
    /// Never fails: a log line that nobody can read must not take the process down.
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

/// Takes lines for a stream; none waits here, and what finds no place is counted.
#[derive(Clone)]
pub struct Lines {
    /// No line is the end.
    sender: SyncSender<Option<Vec<u8>>>,
    lost: Arc<AtomicU64>,
}

impl Lines {
    /// Has lines written to a stream for as long as the second is there.
    pub fn to(stream: Stream) -> (Self, Writing) {
        let (sender, receiver) = sync_channel(MAX_QUEUED_LINES);
        let (ended, written) = channel();
        thread::spawn(move || {
            write(&receiver, stream);
            // Nobody waits where the process is gone already.
            let _ = ended.send(());
        });
        let lines = Self { sender, lost: Arc::default() };
        (lines.clone(), Writing { lines, written })
    }

    /// A whole line, with its newline.
    pub fn send(&self, line: Vec<u8>) {
        if self.sender.try_send(Some(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many lines were lost so far.
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

/// Writes what comes until the end.
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
            // A stream does not fail.
            let _ = pieces.write_all(&line);
        }
        let _ = pieces.flush();
        if ended {
            return;
        }
    }
}

/// Dropped, it waits until what was said before is written, but not for ever: the reader may have stalled.
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
