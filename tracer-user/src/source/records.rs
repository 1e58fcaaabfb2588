//! What the kernel side's records mean: events of stream sockets, in lifetimes, and what the table of descriptors must learn.
//!
//! Enters: decoded records in time order, verdicts of the core. Leaves: inputs in batches, entries in the kernel's table.
//! Refused: records of a lifetime that is over, and of what was gone before anybody could say what it was; both are counted.

use std::collections::HashMap;
use std::mem::take;
use std::time::Duration;

use crossbeam_channel::{SendTimeoutError, Sender, TrySendError};

use super::lives::{Lives, Meeting};
use super::ring::monotonic_ns;
use crate::attach::Target;
use crate::attach::table::{self, Table};
use crate::decode::record::{Record, net::Class};
use crate::input::{Delivered, End, Event, EventNanos, Input, LossStage, Lost, Probe, What};
use crate::output::{Speaks, Verdict};
use crate::proc::descriptors;

/// A batch is handed on at this many inputs or payload bytes, whichever comes first.
const BATCH_INPUTS: usize = 512;
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// What is held while the queue is full (its reader parses an ELF file, or has lost its core to the server): a batch grows up to
/// this before anything is given up.
const HELD_INPUTS: usize = 65_536;
const HELD_BYTES: usize = 16 << 20;
/// How long the reader lets the rings fill up before it drops a batch that does not fit the queue.
const QUEUE_PATIENCE: Duration = Duration::from_millis(100);

pub(super) struct Records {
    table: Table,
    lives: Lives,
    /// Events that came since it was last said, by [`Probe`].
    delivered: [u64; Probe::ALL.len()],
    sender: Sender<Vec<Input>>,
    batch: Vec<Input>,
    batch_bytes: usize,
    /// What `/proc` said of a lifetime, before the kernel side could use it.
    asked: HashMap<End, (u64, Class)>,
    /// Processes whose descriptors are still in the table, and when they ended.
    dead: HashMap<u32, EventNanos>,
    /// Children that are not in the table of processes, and when they were born: their parent's entry is copied when they are.
    missing: HashMap<u32, EventNanos>,
    /// A batch found no room.
    gave_up: bool,
}

impl Records {
    pub(super) fn new(table: Table, sender: Sender<Vec<Input>>) -> Self {
        Self {
            table,
            lives: Lives::default(),
            delivered: [0; Probe::ALL.len()],
            sender,
            batch: Vec::with_capacity(BATCH_INPUTS),
            batch_bytes: 0,
            asked: HashMap::new(),
            dead: HashMap::new(),
            missing: HashMap::new(),
            gave_up: false,
        }
    }

    pub(super) fn record(&mut self, record: Record) {
        match record {
            Record::Event(event) => self.event(event),
            Record::Descriptor { event, class, lifetime } => {
                self.delivered[Probe::Syscall as usize] += 1;
                self.descriptor(event, class, lifetime);
            }
            Record::Received { process } => {
                self.table.look(process, monotonic_ns());
            }
            Record::ClosedRange { at, process, thread, first, last } => {
                for (end, life) in self.lives.range(process, first, last) {
                    if life.lifetime < at {
                        let moved = self.table.entry(end).filter(|entry| entry.lifetime == life.lifetime);
                        self.table.remove(end, life.lifetime);
                        self.lives.remove(end);
                        let moved = moved.map(|entry| (entry.moved_in, entry.moved_out));
                        self.push(Input::Event(Event { at, process, thread, what: What::Closed { end, moved } }));
                    }
                }
            }
        }
    }

    /// An event that concerns no descriptor.
    fn event(&mut self, event: Event) {
        self.delivered[event.what.probe() as usize] += 1;
        match event.what {
            // It has descriptors that no call of its own announces.
            What::Forked { child } => {
                self.know(child, monotonic_ns());
                if !self.table.is_target(child) {
                    self.missing.insert(child, event.at);
                }
            }
            What::Executed => self.executed(&event),
            What::Exited => {
                for (end, _) in self.lives.range(event.process, 0, u32::MAX) {
                    self.lives.remove(end);
                }
                self.lives.forget(event.process);
                self.missing.remove(&event.process);
                self.dead.insert(event.process, event.at);
            }
            _ => {}
        }
        self.push(Input::Event(event));
    }

    fn descriptor(&mut self, event: Event, class: Class, lifetime: u64) {
        let Some(end) = event.what.end() else { return };
        // Told by another thread's call already.
        if matches!(event.what, What::Closed { .. }) && self.lives.get(end).is_some_and(|life| life.lifetime > lifetime)
        {
            return;
        }
        match self.lives.meet(end, lifetime, event.at) {
            Meeting::Same | Meeting::Late => {}
            Meeting::Old => {
                self.lost(event.at, 1, LossStage::Unclassified);
                return;
            }
            // The edges that said so were lost.
            Meeting::Unannounced => {
                self.beside(&event, What::Closed { end, moved: None });
                if !matches!(event.what, What::Opened { .. } | What::Closed { .. }) {
                    self.beside(&event, What::Opened { end });
                }
            }
        }
        if matches!(event.what, What::Closed { .. }) {
            self.asked.remove(&end);
            if !self.lives.close(end, lifetime) {
                return;
            }
        } else if self.lives.get(end).is_some_and(|life| life.is_foreign) {
            return;
        } else if class == Class::Unknown {
            let class = self.ask(end, lifetime);
            match (class, &event.what) {
                // Only sockets are accepted.
                (Some(Class::Tcp | Class::Unix), _) | (_, What::Opened { .. }) => {}
                (Some(_), _) => return,
                (None, _) => {
                    self.lost(event.at, 1, LossStage::Unclassified);
                    return;
                }
            }
        }
        self.push(Input::Event(event));
    }

    /// Something that the record of `event` implies.
    fn beside(&mut self, event: &Event, what: What) {
        self.push(Input::Event(Event { what, ..*event }));
    }

    /// Asks `/proc` what the kernel side did not know, and tells it.
    fn ask(&mut self, end: End, lifetime: u64) -> Option<Class> {
        if let Some((of, class)) = self.asked.get(&end)
            && *of == lifetime
        {
            return Some(*class);
        }
        let class = descriptors::class_of((end.0 >> 32) as u32, end.0 as u32).ok()?;
        self.table.tell(end, lifetime, class);
        self.asked.insert(end, (lifetime, class));
        Some(class)
    }

    /// Says what a connection speaks, if the number still stands for the connection that is meant.
    pub(super) fn verdict(&mut self, verdict: Verdict, from: EventNanos) {
        let Some(life) = self.lives.get_mut(verdict.end).filter(|life| life.from == from) else { return };
        let class = match verdict.speaks {
            Speaks::Http => Class::Http,
            Speaks::Engine => Class::Engine,
            Speaks::Foreign => Class::Ignored,
        };
        life.is_foreign = class == Class::Ignored;
        let lifetime = life.lifetime;
        self.table.tell(verdict.end, lifetime, class);
    }

    /// Traces a process as well, or looks at its sockets from now on. What the kernel refuses leaves it as it was.
    pub(super) fn target(&mut self, target: Target, now: u64) {
        if self.table.add_target(target).is_ok() {
            self.know(target.tgid, now);
        }
    }

    /// Looks at a process's descriptors, once.
    fn know(&mut self, process: u32, now: u64) {
        if self.table.is_captured(process) == (true, false) {
            self.table.look(process, now);
            self.table.set_known(process);
        }
    }

    /// `exec` has closed some descriptors without a `close`; those that were made since are right.
    fn executed(&mut self, event: &Event) {
        let gone = self.table.sweep(|end, entry| {
            let (process, fd) = ((end.0 >> 32) as u32, end.0 as u32);
            process == event.process && entry.lifetime < event.at && !table::is_stream_socket(process, fd)
        });
        for (end, entry) in gone {
            if self.lives.get(end).is_some_and(|life| life.lifetime == entry.lifetime) {
                self.lives.remove(end);
                self.beside(event, What::Closed { end, moved: Some((entry.moved_in, entry.moved_out)) });
            }
        }
    }

    pub(super) fn forget_dead(&mut self) {
        // Answers are of use for a few calls only: until the kernel side has heard them.
        self.asked.clear();
        if !self.dead.is_empty() {
            let dead = take(&mut self.dead);
            self.table
                .sweep(|end, entry| dead.get(&((end.0 >> 32) as u32)).is_some_and(|ended| entry.lifetime <= *ended));
        }
    }

    /// Descriptors that this side found no room for since the last call.
    pub(super) fn take_refused(&mut self) -> u64 {
        self.table.take_refused()
    }

    /// Processes that found no room since the last call. A child that was followed, and is not in the table any more, has said its end by
    /// `until`.
    pub(super) fn take_unfollowed(&mut self, until: EventNanos) -> u64 {
        let before = self.missing.len();
        self.missing.retain(|_, born| *born > until);
        self.table.take_unfollowed() + (before - self.missing.len()) as u64
    }

    pub(super) fn lost(&mut self, at: u64, count: u64, stage: LossStage) {
        self.push(Input::Lost(Lost { at, count, stage }));
    }

    /// Says how many events came from the probes.
    pub(super) fn report_delivered(&mut self) {
        for probe in Probe::ALL {
            let count = take(&mut self.delivered[probe as usize]);
            if count > 0 {
                self.push(Input::Delivered(Delivered { probe, count }));
            }
        }
    }

    pub(super) fn push(&mut self, input: Input) {
        if let Input::Event(Event { what: What::Data { bytes, .. }, .. }) = &input {
            self.batch_bytes += bytes.len();
        }
        self.batch.push(input);
        if self.batch.len() >= BATCH_INPUTS || self.batch_bytes >= BATCH_BYTES {
            self.flush();
        }
    }

    /// Passes on all that is held; waits for room, which there is while the other end empties the queue.
    pub(super) fn hand_over(&mut self) {
        // Nobody is there any more: nobody wants it.
        let _ = self.sender.send(take(&mut self.batch));
    }

    pub(super) fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let bytes = take(&mut self.batch_bytes);
        let batch = match self.sender.try_send(take(&mut self.batch)) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => return,
            Err(TrySendError::Full(batch)) => batch,
        };
        if batch.len() < HELD_INPUTS && bytes < HELD_BYTES {
            (self.batch, self.batch_bytes) = (batch, bytes);
            return;
        }
        // The rings are the better buffer: let them fill for a moment.
        if let Err(SendTimeoutError::Timeout(batch)) = self.sender.send_timeout(batch, QUEUE_PATIENCE) {
            self.batch = without_events(batch, monotonic_ns());
            self.gave_up = true;
        }
    }

    /// Whether anything waits to be handed on.
    pub(super) fn holds_any(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Whether a batch found no room since this was last asked: what was told in it is not told.
    pub(super) fn take_gave_up(&mut self) -> bool {
        take(&mut self.gave_up)
    }
}

/// What is left of a batch that found no room: the account of it, and the newest clock anchor. A queue that nobody empties does not
/// make it grow.
fn without_events(batch: Vec<Input>, now: EventNanos) -> Vec<Input> {
    let (mut lost, mut delivered) = ([0; LossStage::ALL.len()], [0; Probe::ALL.len()]);
    let mut fact = None;
    for input in batch {
        match input {
            Input::Event(_) => lost[LossStage::Queue as usize] += 1,
            Input::Lost(told) => lost[told.stage as usize] += told.count,
            Input::Delivered(told) => delivered[told.probe as usize] += told.count,
            Input::Fact(_) => fact = Some(input),
            // No probe says what GPUs do; the next tick and answer are as good.
            Input::Tick(_) | Input::Gpus(_) | Input::Relieve(_) => {}
        }
    }
    let lost = LossStage::ALL.map(|stage| Lost { at: now, count: lost[stage as usize], stage });
    let delivered = Probe::ALL.map(|probe| Delivered { probe, count: delivered[probe as usize] });
    let lost = lost.into_iter().filter(|lost| lost.count > 0).map(Input::Lost);
    let delivered = delivered.into_iter().filter(|delivered| delivered.count > 0).map(Input::Delivered);
    fact.into_iter().chain(lost).chain(delivered).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Fact;

    #[test]
    fn what_is_left_of_a_batch_that_found_no_room_is_its_account() {
        // twice: 3 events, a tick, a loss that was told, a count, a clock anchor
        let event = || Input::Event(Event { at: 1, process: 1, thread: 1, what: What::Executed });
        let told = || Input::Lost(Lost { at: 1, count: 5, stage: LossStage::DataRing });
        let count = || Input::Delivered(Delivered { probe: Probe::Syscall, count: 3 });
        let anchor = |event_ns| Input::Fact(Fact::Clock { event_ns, unix_ns: 1 });
        let batch = |at| vec![event(), event(), event(), Input::Tick(at), told(), count(), anchor(at)];
        let mut left = without_events(batch(1), 8);
        left.extend(batch(2));
        let lost = |count, stage| Input::Lost(Lost { at: 9, count, stage });
        let sum = Input::Delivered(Delivered { probe: Probe::Syscall, count: 6 });
        let expected = [anchor(2), lost(10, LossStage::DataRing), lost(6, LossStage::Queue), sum];
        assert_eq!(without_events(left, 9), expected, "a tick is nothing lost");
    }
}
