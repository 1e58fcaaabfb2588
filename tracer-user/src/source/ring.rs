//! The live source: one thread drains both rings and hands batches of inputs on.
//!
//! Enters: ring bytes, drop counters, `/proc` for descriptors the kernel side does not know. Leaves: [`Input`]s in batches,
//! through a bounded channel: events of both rings (to be ordered by [`crate::order`]), a tick about every
//! 20 ms, a clock anchor a second, and every loss. Invariant: after `Tick(t)` no event older than `t` minus the time
//! a program takes follows. What does not fit the channel is dropped and counted.

use std::collections::{HashMap as Map, HashSet};
use std::io;
use std::mem::take;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use aya::maps::RingBuf;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::descriptors;
use crate::attach::loader::Rings;
use crate::decode::event::{self, Class, Record, Refused};
use crate::input::{End, Event, Fact, Input, LossStage, Lost, What};
use crate::telemetry::Telemetry;

/// The rings are drained this often when nothing forces a wake-up.
const DRAIN_EVERY: Duration = Duration::from_millis(10);
/// A drain sends a tick when the last one is this old: with timer drains every second one does, so a tick comes about
/// every 20 ms.
const TICK_AFTER_NS: u64 = 15_000_000;
/// A clock anchor, and the housekeeping of dead processes, this often.
const SECOND_NS: u64 = 1_000_000_000;
/// A batch is handed on at this many inputs or payload bytes, whichever comes first.
const BATCH_INPUTS: usize = 512;
const BATCH_BYTES: usize = 1 << 20;
/// Batches that wait for the core: with [`BATCH_BYTES`], at most 64 MiB.
const QUEUE_BATCHES: usize = 64;
/// How long the reader lets the rings fill up before it drops a batch that does not fit the queue.
const QUEUE_PATIENCE: Duration = Duration::from_millis(100);
/// `BPF_NOEXIST`: what the kernel side has learned since wins over what `/proc` said.
const NO_EXIST: u64 = 1;

/// What the reader counted, for the closing summary.
#[derive(Debug, Default)]
pub struct Counts {
    /// Events of descriptors that were closed before anybody could say what they were.
    pub unclassified: AtomicU64,
}

/// The running reader thread.
#[derive(Debug)]
pub struct Reader {
    inputs: Receiver<Vec<Input>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    counts: Arc<Counts>,
}

impl Reader {
    /// Starts the thread. The descriptors of `targets` should have been [classified](prefill) before.
    pub fn spawn(rings: Rings, telemetry: Arc<Telemetry>) -> io::Result<Self> {
        let (sender, inputs) = bounded(QUEUE_BATCHES);
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Counts::default());
        let epoll = wake_ups(&rings)?;
        let mut drain = Drain {
            state: State {
                descriptors: rings.descriptors,
                telemetry,
                sender,
                batch: Vec::with_capacity(BATCH_INPUTS),
                batch_bytes: 0,
                verdicts: Map::new(),
                dead: HashSet::new(),
                counts: Arc::clone(&counts),
            },
            edges: Head { ring: rings.edges, next: None },
            data: Head { ring: rings.data, next: None },
            drops: rings.drops,
            dropped: [0; 2],
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("inferspan-ring".to_owned()).spawn(move || {
            drain.run(&epoll, &stopped);
        })?;
        Ok(Self { inputs, stop, thread, counts })
    }

    /// Where the batches come out. Disconnected once the thread has stopped and everything was taken.
    pub fn inputs(&self) -> &Receiver<Vec<Input>> {
        &self.inputs
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Drains what the rings still hold and ends the thread; the rest of the inputs is passed to `each`.
    pub fn stop(self, mut each: impl FnMut(Vec<Input>)) {
        self.stop.store(true, Relaxed);
        for batch in &self.inputs {
            each(batch);
        }
        // The thread has dropped its sender: it is past its last statement. A panic there was printed by its hook.
        let _ = self.thread.join();
    }
}

/// `CLOCK_MONOTONIC`, ns.
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` lives across the call; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec as u64 * SECOND_NS + now.tv_nsec as u64
}

/// Ties the event clock to the wall clock: the narrowest of several readings, monotonic before and after.
pub fn clock_anchor() -> Fact {
    let (_, event_ns, unix_ns) = (0..5)
        .map(|_| {
            let before = monotonic_ns();
            let unix = clock_ns(libc::CLOCK_REALTIME);
            let after = monotonic_ns();
            (after - before, before + (after - before) / 2, unix)
        })
        .min()
        .expect("five readings");
    Fact::Clock { event_ns, unix_ns }
}

/// Classifies every descriptor that `pid` has open. With `overwrite`, what was said before is corrected.
pub fn prefill(rings: &mut Rings, pid: u32, overwrite: bool) {
    for fd in descriptors::open_descriptors(pid).unwrap_or_default() {
        let Ok(class) = descriptors::class_of(pid, fd) else { continue };
        let key = End::of_descriptor(pid, fd).0;
        if overwrite {
            if rings.descriptors.get(&key, 0).ok() != Some(class.to_wire()) {
                let _ = rings.descriptors.insert(key, class.to_wire(), 0);
            }
        } else {
            let _ = rings.descriptors.insert(key, class.to_wire(), NO_EXIST);
        }
    }
}

/// An epoll that wakes only when the kernel side forces it: edge-triggered, because a ring that holds anything is
/// "readable", and most records are left for the timer.
fn wake_ups(rings: &Rings) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if epoll < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
    for ring in [rings.edges.as_raw_fd(), rings.data.as_raw_fd()] {
        let mut interest = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: 0 };
        // SAFETY: both descriptors are open and `interest` lives across the call.
        if unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, ring, &raw mut interest) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(epoll)
}

fn wait(epoll: &OwnedFd, timeout: Duration) {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 2];
    // SAFETY: `events` holds as many as is said. A signal or a timeout means to look at the rings, as a wake-up does.
    unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 2, timeout.as_millis() as i32) };
}

/// A ring and the record that was taken from it and not yet passed on.
struct Head {
    ring: RingBuf<aya::maps::MapData>,
    next: Option<(u64, Result<Record, Refused>)>,
}

impl Head {
    /// When the next record was made; `None` when the ring is empty.
    fn time(&mut self) -> Option<u64> {
        if self.next.is_none() {
            let bytes = self.ring.next()?;
            self.next = Some((event::time_of(&bytes).unwrap_or(0), event::decode(&bytes)));
        }
        self.next.as_ref().map(|(at, _)| *at)
    }
}

struct Drain {
    edges: Head,
    data: Head,
    drops: aya::maps::PerCpuArray<aya::maps::MapData, u64>,
    dropped: [u64; 2],
    state: State,
}

struct State {
    descriptors: aya::maps::HashMap<aya::maps::MapData, u64, u32>,
    telemetry: Arc<Telemetry>,
    sender: Sender<Vec<Input>>,
    batch: Vec<Input>,
    batch_bytes: usize,
    /// What `/proc` said in this drain, before the kernel side could use it.
    verdicts: Map<End, Class>,
    /// Processes whose descriptors are still in the map.
    dead: HashSet<u32>,
    counts: Arc<Counts>,
}

impl Drain {
    fn run(&mut self, epoll: &OwnedFd, stop: &AtomicBool) {
        let (mut last_tick, mut last_second) = (0, 0);
        loop {
            let stopping = stop.load(Relaxed);
            let now = monotonic_ns();
            if now - last_second >= SECOND_NS {
                last_second = now;
                self.state.push(Input::Fact(clock_anchor()));
                self.state.forget_dead();
            }
            self.drain_until(now);
            self.state.verdicts.clear();
            if stopping || now - last_tick >= TICK_AFTER_NS {
                last_tick = now;
                self.report_losses(now);
                self.state.push(Input::Tick(now));
            }
            self.state.flush();
            if stopping {
                return;
            }
            wait(epoll, DRAIN_EVERY);
        }
    }

    /// Passes on what the rings held at `until`, merged by time: however late this thread comes, the rings do not get out of
    /// step, and a producer that is faster than it cannot hold up the ticks.
    fn drain_until(&mut self, until: u64) {
        loop {
            let head = match (self.edges.time(), self.data.time()) {
                (Some(edge), Some(data)) if edge > data => &mut self.data,
                (Some(_), _) => &mut self.edges,
                (None, Some(_)) => &mut self.data,
                (None, None) => return,
            };
            match head.next.take() {
                Some((at, record)) if at > until => {
                    head.next = Some((at, record));
                    return;
                }
                Some((_, Ok(record))) => self.state.record(record),
                Some((_, Err(_))) => self.state.lost(until, 1, LossStage::Decode),
                None => return,
            }
        }
    }

    /// Reads the kernel side's drop counters; what is new is told and counted.
    fn report_losses(&mut self, now: u64) {
        for (index, stage) in [(0u32, LossStage::EdgeRing), (1, LossStage::DataRing)] {
            let Ok(counters) = self.drops.get(&index, 0) else { continue };
            let total = counters.iter().sum::<u64>();
            let seen = &mut self.dropped[index as usize];
            let count = total.saturating_sub(*seen);
            *seen = total;
            if count > 0 {
                self.state.lost(now, count, stage);
            }
        }
    }
}

impl State {
    fn record(&mut self, record: Record) {
        match record {
            Record::Event(event) => {
                match event.what {
                    What::Call { .. } => &self.telemetry.tokenizer_events,
                    _ => &self.telemetry.process_events,
                }
                .fetch_add(1, Relaxed);
                match event.what {
                    What::Forked { child } => self.classify_all(child),
                    What::Executed => self.reclassify(event.process),
                    What::Exited => {
                        self.dead.insert(event.process);
                    }
                    _ => {}
                }
                self.push(Input::Event(event));
            }
            Record::Descriptor { event, fd, class } => {
                self.telemetry.syscall_events.fetch_add(1, Relaxed);
                if self.is_of_a_stream_socket(&event, fd, class) {
                    self.push(Input::Event(event));
                }
            }
            Record::Address { .. } => {}
        }
    }

    /// Whether an event may go on; asks `/proc` where the kernel side did not know, and tells it.
    fn is_of_a_stream_socket(&mut self, event: &Event, fd: u32, class: Class) -> bool {
        let end = End::of_descriptor(event.process, fd);
        if matches!(event.what, What::Opened { .. } | What::Closed { .. }) {
            self.verdicts.remove(&end);
        }
        match class {
            Class::Tcp | Class::Unix => return true,
            Class::Ignored => return false,
            Class::Unknown => {}
        }
        match event.what {
            // `/proc` cannot say what is gone; that nothing is known of `end` any more is true in any case.
            What::Closed { .. } => return true,
            // Only sockets are accepted.
            What::Opened { .. } => {
                self.verdict(event.process, fd, end);
                return true;
            }
            _ => {}
        }
        match self.verdict(event.process, fd, end) {
            Some(Class::Tcp | Class::Unix) => true,
            Some(_) => false,
            None => {
                self.counts.unclassified.fetch_add(1, Relaxed);
                false
            }
        }
    }

    fn verdict(&mut self, process: u32, fd: u32, end: End) -> Option<Class> {
        if let Some(class) = self.verdicts.get(&end) {
            return Some(*class);
        }
        let class = descriptors::class_of(process, fd).ok()?;
        let _ = self.descriptors.insert(end.0, class.to_wire(), NO_EXIST);
        self.verdicts.insert(end, class);
        Some(class)
    }

    /// A child inherits descriptors that no call of its own announces.
    fn classify_all(&mut self, process: u32) {
        for fd in descriptors::open_descriptors(process).unwrap_or_default() {
            self.verdict(process, fd, End::of_descriptor(process, fd));
        }
    }

    /// `exec` has closed some descriptors without a `close`.
    fn reclassify(&mut self, process: u32) {
        self.remove_descriptors(|tgid| tgid == process);
        self.verdicts.retain(|end, _| (end.0 >> 32) as u32 != process);
        self.classify_all(process);
    }

    fn forget_dead(&mut self) {
        if !self.dead.is_empty() {
            let dead = take(&mut self.dead);
            self.remove_descriptors(|tgid| dead.contains(&tgid));
        }
    }

    fn remove_descriptors(&mut self, of: impl Fn(u32) -> bool) {
        let gone: Vec<u64> =
            self.descriptors.keys().filter_map(Result::ok).filter(|key| of((key >> 32) as u32)).collect();
        for key in gone {
            let _ = self.descriptors.remove(&key);
        }
    }

    fn lost(&mut self, at: u64, count: u64, stage: LossStage) {
        self.telemetry.add_lost(stage, count);
        self.push(Input::Lost(Lost { at, count, stage }));
    }

    fn push(&mut self, input: Input) {
        if let Input::Event(Event { what: What::Data { bytes, .. }, .. }) = &input {
            self.batch_bytes += bytes.len();
        }
        self.batch.push(input);
        if self.batch.len() >= BATCH_INPUTS || self.batch_bytes >= BATCH_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = take(&mut self.batch);
        self.batch_bytes = 0;
        let batch = match self.sender.try_send(batch) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => return,
            Err(TrySendError::Full(batch)) => batch,
        };
        // The rings are the better buffer: let them fill for a moment.
        if let Err(crossbeam_channel::SendTimeoutError::Timeout(batch)) =
            self.sender.send_timeout(batch, QUEUE_PATIENCE)
        {
            let count = batch.iter().filter(|input| matches!(input, Input::Event(_) | Input::Lost(_))).count() as u64;
            let now = monotonic_ns();
            self.telemetry.add_lost(LossStage::Queue, count);
            self.batch.push(Input::Lost(Lost { at: now, count, stage: LossStage::Queue }));
        }
    }
}
