//! Engine messages are seen twice, leaving one process and arriving at another, and count once.
//!
//! Enters: sightings. Leaves: messages, each once, with the time at which it counts: when the front end has it. Where only the
//! sending end is seen it counts when it leaves; one seen leaving and not arriving within [`IN_FLIGHT`] counts as arrived then.
//! A message without a stamp (it was cut before it) cannot be told from others: it counts at the end that counts, never twice.
//! Bounded: where more than [`MAX_OUTPUTS`] are under way, the oldest of the sender count as of when they left.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use xxhash_rust::xxh3::Xxh3;

use crate::engine::Outputs;
use crate::input::{Direction, End, EventNanos};

/// How long an output message may be under way between its two ends, ns (a loaded front end: 10s of ms).
const IN_FLIGHT: EventNanos = 250_000_000;
/// Outputs that are under way at most: five times what 1,000 streams of 50 tokens a second send in [`IN_FLIGHT`].
const MAX_OUTPUTS: usize = 65_536;
/// Messages that are remembered to recognise their second sighting: five minutes of 50 steps a second.
const MAX_SEEN: usize = 16_384;

/// Whether the receiving ends of output messages are seen too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Receivers {
    /// None was seen yet; messages are held a moment for one.
    #[default]
    Unknown,
    /// They are: an output counts when the front end has it.
    Seen,
    /// They are not (a log of the engine's side only): an output counts when it leaves.
    Unseen,
}

/// Both sightings of output messages.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// Seen leaving, by the sending end, in order.
    sent: BTreeMap<End, VecDeque<(u64, EventNanos, Outputs)>>,
    sender_of: HashMap<u64, End>,
    /// Outputs in them, and one for each message.
    under_way: usize,
    receivers: Receivers,
    seen: HashSet<u64>,
    seen_order: VecDeque<u64>,
}

impl InFlight {
    /// Takes a sighting; messages that count by it are appended to `due` with the time at which they do.
    pub(super) fn sighted(
        &mut self,
        at: EventNanos,
        end: End,
        direction: Direction,
        message: Outputs,
        due: &mut Vec<(EventNanos, Outputs)>,
    ) {
        let key = identity(&message);
        match direction {
            Direction::In => {
                self.receivers = Receivers::Seen;
                let Some(key) = key else {
                    due.push((at, message));
                    return;
                };
                match self.take_sent(key, due) {
                    true => due.push((at, message)),
                    false if self.remember(key) => due.push((at, message)),
                    false => {}
                }
            }
            Direction::Out => match (key, self.receivers) {
                (None, Receivers::Unseen) => due.push((at, message)),
                // Its other sighting counts.
                (None, _) => {}
                (Some(key), receivers) => {
                    if !self.remember(key) {
                        return;
                    }
                    if receivers == Receivers::Unseen {
                        due.push((at, message));
                    } else {
                        self.send(key, at, end, message, due);
                    }
                }
            },
        }
    }

    fn send(&mut self, key: u64, at: EventNanos, end: End, message: Outputs, due: &mut Vec<(EventNanos, Outputs)>) {
        self.sender_of.insert(key, end);
        self.under_way += weight(&message);
        let queue = self.sent.entry(end).or_default();
        queue.push_back((key, at, message));
        while self.under_way > MAX_OUTPUTS {
            // Of this sender alone: it is by its messages that there are too many. Their second sightings are known by their keys.
            let Some((key, at, message)) = queue.pop_front() else { break };
            self.sender_of.remove(&key);
            self.under_way = self.under_way.saturating_sub(weight(&message));
            due.push((at, message));
        }
    }

    /// Forgets a message that went to nobody whose sightings count.
    pub(super) fn forget(&mut self, message: &Outputs) {
        if let Some(key) = identity(message)
            && let Some(end) = self.sender_of.remove(&key)
            && let Some(queue) = self.sent.get_mut(&end)
        {
            queue.retain(|(k, _, message)| {
                let is_it = *k == key;
                self.under_way = self.under_way.saturating_sub(if is_it { weight(message) } else { 0 });
                !is_it
            });
            // The same message may have gone to a front end as well.
            self.seen.remove(&key);
        }
    }

    /// Whether the message with this key was seen leaving. Messages of one connection arrive in order: earlier ones of it arrived
    /// unseen, and count as of when they left.
    fn take_sent(&mut self, key: u64, due: &mut Vec<(EventNanos, Outputs)>) -> bool {
        let Some(end) = self.sender_of.remove(&key) else { return false };
        let Some(queue) = self.sent.get_mut(&end) else { return false };
        while let Some((k, at, message)) = queue.pop_front() {
            self.under_way = self.under_way.saturating_sub(weight(&message));
            if k == key {
                break;
            }
            self.sender_of.remove(&k);
            due.push((at, message));
        }
        if queue.is_empty() {
            self.sent.remove(&end);
        }
        true
    }

    /// Messages that were sent long ago and never seen arriving.
    pub(super) fn overdue(&mut self, now: EventNanos, due: &mut Vec<(EventNanos, Outputs)>) {
        for queue in self.sent.values_mut() {
            while queue.front().is_some_and(|(_, at, _)| at.saturating_add(IN_FLIGHT) <= now) {
                let Some((key, at, message)) = queue.pop_front() else { break };
                self.sender_of.remove(&key);
                self.under_way = self.under_way.saturating_sub(weight(&message));
                if self.receivers == Receivers::Unknown {
                    self.receivers = Receivers::Unseen;
                }
                due.push((at, message));
            }
        }
        self.sent.retain(|_, queue| !queue.is_empty());
    }

    /// False when the message was seen before.
    fn remember(&mut self, key: u64) -> bool {
        if !self.seen.insert(key) {
            return false;
        }
        self.seen_order.push_back(key);
        if self.seen_order.len() > MAX_SEEN
            && let Some(old) = self.seen_order.pop_front()
        {
            self.seen.remove(&old);
        }
        true
    }
}

fn weight(message: &Outputs) -> usize {
    1 + message.outputs.len()
}

/// Tells an output message from every other, the same at both of its ends: by engine, stamp and the first of its requests. `None`
/// when it has no stamp.
fn identity(message: &Outputs) -> Option<u64> {
    let stamp = message.timestamp?;
    let mut hash = Xxh3::new();
    hash.update(&message.engine.to_le_bytes());
    hash.update(&stamp.to_bits().to_le_bytes());
    hash.update(&[u8::from(message.stats.is_some())]);
    // Front ends of one engine may get messages with one stamp; their requests differ from the first on.
    if let Some(output) = message.outputs.first() {
        hash.update(output.id.as_bytes());
    }
    Some(hash.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(stamp: Option<f64>) -> Outputs {
        Outputs { timestamp: stamp, ..Outputs::default() }
    }

    fn run(sightings: &[(EventNanos, Direction, Option<f64>)], until: EventNanos) -> Vec<(EventNanos, Option<f64>)> {
        let (mut in_flight, mut due) = (InFlight::default(), Vec::new());
        for &(at, direction, stamp) in sightings {
            in_flight.sighted(at, End(1), direction, message(stamp), &mut due);
        }
        in_flight.overdue(until, &mut due);
        due.into_iter().map(|(at, m)| (at, m.timestamp)).collect()
    }

    #[test]
    fn a_message_counts_once_when_the_front_end_has_it() {
        // out 10 ── in 12;  in 20 ── out 21 (the receiver was woken before the sender's call returned)
        use Direction::{In, Out};
        let seen =
            run(&[(10, Out, Some(1.0)), (12, In, Some(1.0)), (20, In, Some(2.0)), (21, Out, Some(2.0))], 900_000_000);
        assert_eq!(seen, [(12, Some(1.0)), (20, Some(2.0))]);
    }

    #[test]
    fn cut_messages_are_not_taken_for_each_other() {
        // The same engine, no stamp: three steps, each seen at both ends.
        use Direction::{In, Out};
        let seen = run(&[(1, Out, None), (2, In, None), (3, Out, None), (4, In, None), (5, In, None)], 900_000_000);
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn what_is_overtaken_on_its_connection_arrived_unseen() {
        use Direction::{In, Out};
        let seen = run(&[(1, Out, Some(1.0)), (2, Out, Some(2.0)), (9, In, Some(2.0))], 10);
        assert_eq!(seen, [(1, Some(1.0)), (9, Some(2.0))]);
    }

    #[test]
    fn of_too_many_under_way_the_oldest_count_as_of_when_they_left() {
        // out 1, 2, 3 … (none of them arrives) ── in of the first
        use Direction::{In, Out};
        let (mut in_flight, mut due) = (InFlight::default(), Vec::new());
        let outputs = vec![crate::engine::RequestOutput::default(); 1023];
        let message =
            |stamp: u64| Outputs { timestamp: Some(stamp as f64), outputs: outputs.clone(), ..Outputs::default() };
        for at in 1..=65 {
            in_flight.sighted(at, End(1), Out, message(at), &mut due);
        }
        assert_eq!(due.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1]);
        in_flight.sighted(70, End(1), In, message(1), &mut due);
        assert_eq!(due.len(), 1, "it counts once");
        in_flight.sighted(71, End(1), In, message(65), &mut due);
        assert_eq!((due.len(), in_flight.under_way), (65, 0), "those before it arrived unseen");
    }

    #[test]
    fn without_receivers_messages_count_when_they_leave() {
        use Direction::Out;
        let seen = run(&[(1, Out, Some(1.0)), (2, Out, Some(2.0))], 900_000_000);
        assert_eq!(seen, [(1, Some(1.0)), (2, Some(2.0))]);
    }
}
