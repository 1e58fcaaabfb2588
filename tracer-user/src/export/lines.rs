//! A thread that writes items to a file, one after the other: the access log, the trace file, the terminal, a timeline.
//!
//! Enters: items, through a bounded queue. Leaves: whole lines (or what else a [`Render`] makes of an item), each in one write, so that a
//! reader never sees half of one. A slow disk or a stopped pager fills the queue and nothing else. After a write failed the rest of the
//! items is counted as lost and the file left alone; the failure is said once.

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use super::Pressure;
use super::complaint::Complaint;
use super::queue::{self, Writer};

/// How long the end of a run waits for a destination that takes no more (a stopped pager).
const FLUSH: Duration = Duration::from_secs(10);

/// What happened to items; called on the writing thread, or on the core's when the queue was full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Written,
    QueueFull,
    WriteFailed,
}

/// Makes bytes of items, on the writing thread.
pub trait Render<T>: Send {
    /// Appends `item` to `out`.
    fn item(&mut self, item: &T, out: &mut Vec<u8>) -> std::io::Result<()>;

    /// Appends what comes after the last item.
    fn end(&mut self, _out: &mut Vec<u8>) {}

    /// Items that are there are written together up to about so many bytes; 0: each by itself.
    fn batch(&self) -> usize {
        0
    }
}

/// An item is what the function makes of it, and a line end.
struct Line<F>(F);

impl<T, F: FnMut(&T, &mut Vec<u8>) -> std::io::Result<()> + Send> Render<T> for Line<F> {
    fn item(&mut self, item: &T, out: &mut Vec<u8>) -> std::io::Result<()> {
        (self.0)(item, out)?;
        out.push(b'\n');
        Ok(())
    }
}

/// A running line writer.
pub struct Lines<T> {
    writer: Writer<(Arc<T>, u64)>,
    count: Arc<dyn Fn(Fate, u64) + Send + Sync>,
    complaint: Arc<Complaint>,
    /// What weights count, as a user knows it.
    unit: &'static str,
    done: Receiver<()>,
    pressure: Pressure,
}

impl<T> std::fmt::Debug for Lines<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("complaint", &self.complaint).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Lines<T> {
    /// Starts a thread that renders items with `render` (without the line end) and writes them to `out`. `capacity` is the
    /// weight that may wait; `count` is told the fate of every weight; `unit` is what weights count (`spans`).
    pub fn start(
        about: String,
        unit: &'static str,
        out: Box<dyn Write + Send>,
        capacity: u64,
        pressure: Pressure,
        count: impl Fn(Fate, u64) + Send + Sync + 'static,
        render: impl FnMut(&T, &mut Vec<u8>) -> std::io::Result<()> + Send + 'static,
    ) -> std::io::Result<Self> {
        Self::start_with(about, unit, out, capacity, pressure, count, Line(render))
    }

    /// As [`Self::start`], with what makes more than lines.
    pub fn start_with(
        about: String,
        unit: &'static str,
        mut out: Box<dyn Write + Send>,
        capacity: u64,
        pressure: Pressure,
        count: impl Fn(Fate, u64) + Send + Sync + 'static,
        mut render: impl Render<T> + 'static,
    ) -> std::io::Result<Self> {
        let (writer, queue) = queue::bounded::<(Arc<T>, u64)>(capacity);
        let count: Arc<dyn Fn(Fate, u64) + Send + Sync> = Arc::new(count);
        let complaint = Arc::new(Complaint::new(about));
        let (finished, done) = mpsc::channel();
        let (thread_count, thread_complaint) = (Arc::clone(&count), Arc::clone(&complaint));
        std::thread::Builder::new().name("inferspan-lines".into()).spawn(move || {
            let mut bytes = Vec::new();
            let mut is_broken = false;
            let mut is_over = false;
            while !is_over {
                bytes.clear();
                let (mut taken, mut weights, mut written) = (false, 0, Ok(()));
                loop {
                    // What is there already goes into the same write.
                    let next = if taken { queue.try_pop() } else { queue.pop() };
                    let Some((item, weight)) = next else {
                        is_over = !taken;
                        break;
                    };
                    taken = true;
                    weights += weight;
                    if !is_broken && written.is_ok() {
                        written = render.item(&item, &mut bytes);
                    }
                    if bytes.len() >= render.batch() {
                        break;
                    }
                }
                if is_over {
                    render.end(&mut bytes);
                }
                if !is_broken {
                    written = written.and_then(|()| out.write_all(&bytes).and_then(|()| out.flush()));
                    if let Err(error) = written {
                        is_broken = true;
                        thread_complaint.raise(&error.to_string(), 0, unit);
                    }
                }
                if is_broken {
                    thread_complaint.add(weights);
                }
                if taken {
                    thread_count(if is_broken { Fate::WriteFailed } else { Fate::Written }, weights);
                }
            }
            // The receiver is gone when the run did not wait that long.
            let _ = finished.send(());
        })?;
        Ok(Self { writer, count, complaint, unit, done, pressure })
    }

    /// Queues `item`.
    pub fn push(&self, item: &Arc<T>, weight: u64) {
        if self.writer.push((Arc::clone(item), weight), weight, self.pressure).is_err() {
            (self.count)(Fate::QueueFull, weight);
        }
    }

    /// Waits, for a bounded time, until all is written; the failure, if there was one.
    pub fn finish(self) -> Option<String> {
        drop(self.writer);
        if self.done.recv_timeout(FLUSH).is_err() {
            self.complaint.raise("takes no more; what was still queued is lost", 0, self.unit);
        }
        self.complaint.last()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>, usize);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.1 == 0 {
                return Err(io::Error::other("disk full"));
            }
            self.1 -= 1;
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Fates = Arc<Mutex<Vec<(Fate, u64)>>>;

    fn start(sink: &Sink) -> (Lines<String>, Fates) {
        let fates = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&fates);
        let count = move |fate, weight| seen.lock().unwrap().push((fate, weight));
        let render = |item: &String, line: &mut Vec<u8>| {
            line.extend_from_slice(item.as_bytes());
            Ok(())
        };
        let out = Box::new(sink.clone());
        (Lines::start("test file".into(), "spans", out, 100, Pressure::Wait, count, render).unwrap(), fates)
    }

    #[test]
    fn every_item_is_a_line_in_order() {
        let sink = Sink(Arc::default(), usize::MAX);
        let (lines, fates) = start(&sink);
        for n in 0..3 {
            lines.push(&Arc::new(format!("item {n}")), 1);
        }
        assert_eq!(lines.finish(), None);
        assert_eq!(*sink.0.lock().unwrap(), b"item 0\nitem 1\nitem 2\n");
        assert_eq!(*fates.lock().unwrap(), [(Fate::Written, 1); 3]);
    }

    #[test]
    fn a_failed_write_is_reported_once_and_the_rest_counted() {
        let sink = Sink(Arc::default(), 1);
        let (lines, fates) = start(&sink);
        for n in 0..3 {
            lines.push(&Arc::new(format!("item {n}")), 2);
        }
        assert_eq!(lines.finish().unwrap(), "test file: disk full (4 spans lost)");
        let expected = [(Fate::Written, 2), (Fate::WriteFailed, 2), (Fate::WriteFailed, 2)];
        assert_eq!(*fates.lock().unwrap(), expected);
    }
}
