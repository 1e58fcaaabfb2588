//! The live source: one thread drains all rings and hands batches of inputs on.
//!
//! Enters: ring bytes, drop counters, `/proc` for descriptors the kernel side does not know. Leaves: [`Input`]s in batches (what a record means is
//! [`super::records`]'s),
//! through a bounded channel: events of all rings (to be ordered by [`crate::order`]), a tick about every
//! 20 ms, a clock anchor a second, and every loss. Invariant: after `Tick(t)` no event older than `t` minus the time
//! a program takes follows. What does not fit the channel is dropped and counted.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use aya::maps::RingBuf;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use tracer_ebpf::wire::ring::DROPS_LEN;

use super::records::Records;
use crate::attach::Target;
use crate::attach::counters::{Counters, OfThread};
use crate::attach::loader::Rings;
use crate::attach::rings::RINGS;
use crate::decode::record::{self, Record, Refused};
use crate::input::cuda::{FunctionKey, Seen};
use crate::input::{Event, EventNanos, Fact, Input, LossStage, What};
use crate::output::Verdict;
use crate::proc::Proc;

/// The rings are drained this often when nothing forces a wake-up.
const DRAIN_EVERY: Duration = Duration::from_millis(10);
/// A drain sends a tick when the last one is this old: with timer drains every second one does, so a tick comes about
/// every 20 ms.
const TICK_AFTER_NS: u64 = 15_000_000;
/// A clock anchor, and the housekeeping of dead processes, this often.
const SECOND_NS: u64 = 1_000_000_000;
/// A child's end is read this long after its birth, if it was in the table and is not any more: it left the table before it said so.
const CHILD_TOLD_NS: u64 = 200_000_000;
/// Batches that wait for the core: with [`super::records::BATCH_BYTES`], at most 16 MiB, and as much is held beside them.
const QUEUE_BATCHES: usize = 16;

/// What the reader is told.
#[derive(Debug, Clone, Copy)]
pub enum Command {
    /// What a connection speaks; the time is that of its first event on the pure side.
    Verdict(Verdict, EventNanos),
    /// Trace this as well, or look at its sockets from now on.
    Target(Target),
}

/// The running reader thread.
#[derive(Debug)]
pub struct Reader {
    inputs: Receiver<Vec<Input>>,
    commands: Sender<Command>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Reader {
    /// Starts the thread. The descriptors of the targets should have been looked at before.
    pub fn spawn(rings: Rings) -> io::Result<Self> {
        let (sender, inputs) = bounded(QUEUE_BATCHES);
        let stop = Arc::new(AtomicBool::new(false));
        let (commands, told) = unbounded();
        let epoll = wake_ups(&rings)?;
        let mut drain = Drain {
            records: Records::new(rings.table, sender),
            commands: told,
            heads: rings.rings.into_iter().map(|ring| Head { ring, next: None }).collect(),
            drops: rings.drops,
            counters: rings.counters,
            dropped: [0; DROPS_LEN as usize],
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("inferspan-ring".to_owned()).spawn(move || {
            drain.run(&epoll, &stopped);
        })?;
        Ok(Self { inputs, commands, stop, thread })
    }

    /// Where the batches come out. Disconnected once the thread has stopped and everything was taken.
    pub fn inputs(&self) -> &Receiver<Vec<Input>> {
        &self.inputs
    }

    /// Tells the thread something; it looks about every 10 ms.
    pub fn tell(&self, command: Command) {
        // It is gone only after a panic, and then nothing is traced any more.
        let _ = self.commands.send(command);
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
    for ring in &rings.rings {
        let mut interest = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: 0 };
        // SAFETY: both descriptors are open and `interest` lives across the call.
        if unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, ring.as_raw_fd(), &raw mut interest) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(epoll)
}

fn wait(epoll: &OwnedFd, timeout: Duration) {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; RINGS.len()];
    // SAFETY: `events` holds as many as is said. A signal or a timeout means to look at the rings, as a wake-up does.
    unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), RINGS.len() as i32, timeout.as_millis() as i32) };
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
            self.next = Some((record::time_of(&bytes).unwrap_or(0), record::decode(&bytes)));
        }
        self.next.as_ref().map(|(at, _)| *at)
    }
}

struct Drain {
    heads: Vec<Head>,
    drops: aya::maps::PerCpuArray<aya::maps::MapData, u64>,
    counters: Counters,
    dropped: [u64; DROPS_LEN as usize],
    commands: Receiver<Command>,
    records: Records,
}

impl Drain {
    fn run(&mut self, epoll: &OwnedFd, stop: &AtomicBool) {
        let (mut last_tick, mut last_second) = (0, 0);
        loop {
            let stopping = stop.load(Relaxed);
            let now = monotonic_ns();
            let is_second = now - last_second >= SECOND_NS;
            if is_second {
                last_second = now;
                self.forget_ended(now);
            }
            self.drain_until(now);
            // Behind the rings: totals that are told for now must not come after the end of their process, which would count them anew.
            if is_second {
                self.records.push(Input::Fact(clock_anchor()));
                self.records.forget_dead();
                self.count_all(now);
            }
            for command in self.commands.try_iter() {
                match command {
                    Command::Verdict(verdict, from) => self.records.verdict(verdict, from),
                    Command::Target(target) => self.records.target(target, now),
                }
            }
            if stopping || now - last_tick >= TICK_AFTER_NS {
                last_tick = now;
                let moved = self.counters.threads(now, false);
                self.tell_threads(now, moved);
                self.tell_processes(now, None);
                self.report_losses(now);
                self.report_unfollowed(now, stopping);
                self.records.report_delivered();
                self.records.push(Input::Tick(now));
            }
            if stopping {
                // Nobody calls the programs any more.
                self.count_all(EventNanos::MAX);
                self.tell_unmet(now);
                self.tell_processes(now, None);
                self.records.hand_over();
                return;
            }
            self.records.flush();
            if self.records.take_gave_up() {
                self.counters.tell_again();
            }
            wait(epoll, DRAIN_EVERY);
        }
    }

    /// Passes on what the rings held at `until`, merged by time: however late this thread comes, the rings do not get out of
    /// step, and a producer that is faster than it cannot hold up the ticks.
    fn drain_until(&mut self, until: u64) {
        loop {
            let oldest = self.heads.iter_mut().filter_map(|head| Some((head.time()?, head))).min_by_key(|(at, _)| *at);
            let Some((_, head)) = oldest else { return };
            match head.next.take() {
                Some((at, record)) if at > until => {
                    head.next = Some((at, record));
                    return;
                }
                Some((_, Ok(record))) => {
                    self.account(&record);
                    self.records.record(record);
                }
                Some((_, Err(_))) => self.records.lost(until, 1, LossStage::Decode),
                None => return,
            }
        }
    }

    /// What a record means for the counters: a burst is told of; of a process that is gone the last counts are told before its end.
    fn account(&mut self, record: &Record) {
        let Record::Event(Event { at, process, thread, what }) = record else { return };
        match what {
            What::Cuda(seen) => match &**seen {
                Seen::Burst(sums) => self.counters.heard(*process, *thread, sums),
                Seen::Function { key, .. } => self.counters.met(*key),
                _ => {}
            },
            What::Exited => {
                let moved = self.counters.of_process(*process);
                self.tell_threads(*at, moved);
                self.tell_functions(*at);
                self.tell_unmet(*at);
                self.tell_processes(*at, Some(*process));
                self.counters.forget(*process);
            }
            _ => {}
        }
    }

    /// Tells of all threads that stand still, and of all functions.
    fn count_all(&mut self, now: EventNanos) {
        let moved = self.counters.threads(now, true);
        let at = now.min(monotonic_ns());
        // Of those that were counted the last time: their records have been read since, if there are any.
        self.tell_unmet(at);
        self.tell_threads(at, moved);
        self.tell_functions(at);
    }

    /// Lets threads go that are gone and were told of; while something is held back, what was told may still be given up.
    fn forget_ended(&mut self, at: EventNanos) {
        if self.records.holds_any() {
            return;
        }
        let proc = Proc::this();
        for (process, thread) in self.counters.take_ended(|process, thread| !proc.has_thread(process, thread)) {
            let what = What::Cuda(Box::new(Seen::ThreadEnded));
            self.records.push(Input::Event(Event { at, process, thread, what }));
        }
    }

    fn tell_threads(&mut self, at: EventNanos, moved: Vec<OfThread>) {
        for OfThread { process, thread, sums } in moved {
            let what = What::Cuda(Box::new(Seen::Burst(sums)));
            self.records.push(Input::Event(Event { at, process, thread, what }));
        }
    }

    fn tell_functions(&mut self, at: EventNanos) {
        let mut by_process: BTreeMap<u32, Vec<(FunctionKey, u64)>> = BTreeMap::new();
        for (key, count) in self.counters.functions() {
            by_process.entry(key.process).or_default().push((key, count));
        }
        for (process, counts) in by_process {
            let what = What::Cuda(Box::new(Seen::Counts(counts)));
            self.records.push(Input::Event(Event { at, process, thread: process, what }));
        }
    }

    /// Tells what processes hold, and have sent; of one, or of all.
    fn tell_processes(&mut self, at: EventNanos, only: Option<u32>) {
        for (process, sums) in self.counters.processes(only) {
            let what = What::Cuda(Box::new(Seen::Process(sums)));
            self.records.push(Input::Event(Event { at, process, thread: process, what }));
        }
    }

    /// A function whose first launch found the ring full is met now, or it would have no name.
    fn tell_unmet(&mut self, at: EventNanos) {
        for key in self.counters.unmet() {
            let what = What::Cuda(Box::new(Seen::Function { key, callers: [0; 4], text: None }));
            self.records.push(Input::Event(Event { at, process: key.process, thread: key.process, what }));
        }
    }

    /// Tells of processes that found no room in the table.
    fn report_unfollowed(&mut self, now: u64, is_last: bool) {
        let until = if is_last { now } else { now.saturating_sub(CHILD_TOLD_NS) };
        let count = self.records.take_unfollowed(until);
        if count > 0 {
            self.records.lost(now, count, LossStage::Targets);
        }
    }

    /// Reads the kernel side's drop counters; what is new is told and counted.
    fn report_losses(&mut self, now: u64) {
        let stages = RINGS.iter().map(|ring| ring.stage).chain([LossStage::Descriptors, LossStage::CudaTable]);
        for (index, stage) in (0u32..).zip(stages) {
            let Ok(counters) = self.drops.get(&index, 0) else { continue };
            let total = counters.iter().sum::<u64>();
            let seen = &mut self.dropped[index as usize];
            let mut count = total.saturating_sub(*seen);
            *seen = total;
            if stage == LossStage::Descriptors {
                count += self.records.take_refused();
            }
            if count > 0 {
                self.records.lost(now, count, stage);
            }
        }
    }
}
