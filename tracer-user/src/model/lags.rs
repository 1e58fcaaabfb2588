//! How far a front end was behind an engine lately: from when the engine sent a message (its stamp, where it was not seen sending it long
//! after that) to when the front end received it or, where its decoder is probed, got to it.
//!
//! Enters: messages as they are sent, as they arrive and as they are decoded. Leaves: the lag of one message, and the most of a span of time.
//! Bounded: of the newest messages each is kept; older ones are folded by two, so that what is kept reaches twice as far back each time.

use std::collections::VecDeque;

use super::generation::Generation;
use crate::input::EventNanos;

/// Entries that are kept of a front end and an engine: 32 KiB. With 50 steps a second the last 10 s are exact, and the last 20 s kept.
const MAX: usize = 1_024;

/// A message that was sent so long after its stamp, ns, was sent late: what is less, nobody is blamed for.
const LATE: EventNanos = 5_000_000;
/// Late messages of an engine that are known, the newest.
const MAX_LATE: usize = 1_024;

/// When an engine sent what it sent late: its thread that sends stood still, or all of it.
#[derive(Debug, Default)]
pub struct Sends {
    /// Stamps and times, by the stamps.
    late: VecDeque<(EventNanos, EventNanos)>,
}

impl Sends {
    /// A message stamped at `stamp` was sent at `at`.
    pub fn sent(&mut self, stamp: EventNanos, at: EventNanos) {
        if at.saturating_sub(stamp) < LATE {
            return;
        }
        let place = self.late.partition_point(|(known, _)| *known <= stamp);
        self.late.insert(place, (stamp, at));
        if self.late.len() > MAX_LATE {
            self.late.pop_front();
        }
    }

    /// When what was stamped at `stamp` was sent first; `None` where that is too long ago to be known.
    fn of(&self, stamp: EventNanos) -> Option<EventNanos> {
        let place = self.late.partition_point(|(known, _)| *known < stamp);
        match self.late.get(place) {
            Some((known, sent)) if *known == stamp => Some(*sent),
            _ if place == 0 && self.late.len() == MAX_LATE => None,
            _ => Some(stamp),
        }
    }
}

/// How far a front end was behind its engine with one engine request, ns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lagged {
    /// With its first output.
    pub first: Option<u64>,
    /// The most, of all messages between its first output and its last.
    pub most: Option<u64>,
    /// With its last output.
    pub last: Option<u64>,
}

/// One message, or several that were folded.
#[derive(Debug, Clone, Copy)]
struct Lag {
    /// The engine's stamps of the first and the last of them, on the event clock.
    from: EventNanos,
    to: EventNanos,
    /// The most of them, ns.
    most: u64,
}

/// The lags of one front end with one engine.
#[derive(Debug, Default)]
pub struct Lags {
    lags: VecDeque<Lag>,
}

impl Lags {
    /// The front end has a message that was stamped at `stamp`: it received it at `at`, or got to it then.
    pub fn has(&mut self, stamp: EventNanos, at: EventNanos, sends: &Sends) {
        let Some(sent) = sends.of(stamp) else { return };
        let most = at.saturating_sub(sent);
        let place = self.lags.partition_point(|lag| lag.to < stamp);
        match self.lags.get_mut(place) {
            // Of that it had received it, or of messages that are folded.
            Some(lag) if lag.from <= stamp => lag.most = lag.most.max(most),
            _ => self.lags.insert(place, Lag { from: stamp, to: stamp, most }),
        }
        if self.lags.len() > MAX {
            self.fold();
        }
    }

    /// Folds the older half by two.
    fn fold(&mut self) {
        let newer = self.lags.split_off(MAX / 2);
        let older = self.lags.make_contiguous().chunks(2).map(|pair| {
            let of = |pick: fn(&Lag) -> u64| pair.iter().map(pick);
            let from = of(|lag| lag.from).min().unwrap_or_default();
            let (to, most) = (of(|lag| lag.to).max().unwrap_or_default(), of(|lag| lag.most).max().unwrap_or_default());
            Lag { from, to, most }
        });
        self.lags = older.chain(newer).collect();
    }

    /// The most of what was stamped in `from..=to`, as far as it is known to be of that time.
    fn most(&self, from: EventNanos, to: EventNanos) -> Option<u64> {
        let first = self.lags.partition_point(|lag| lag.from < from);
        self.lags.range(first..).take_while(|lag| lag.to <= to).map(|lag| lag.most).max()
    }

    /// With an engine request that is over.
    pub fn of(&self, generation: &Generation, sends: &Sends) -> Lagged {
        let (Some(first), Some(last)) = (generation.first, generation.last) else { return Lagged::default() };
        let at = |stamp| self.most(stamp, stamp);
        let taken_up = generation.taken_up.zip(sends.of(first.at));
        let taken_up = taken_up.map(|(at, sent)| at.max(first.received).saturating_sub(sent));
        // One that is folded by now was received then, at least.
        let or_received =
            |lag: Option<u64>, received: EventNanos, at| lag.or_else(|| Some(received.saturating_sub(sends.of(at)?)));
        let first_lag = or_received(taken_up.or_else(|| at(first.at)), first.received, first.at);
        let last_lag = if last.at == first.at { first_lag } else { or_received(at(last.at), last.received, last.at) };
        let most = [first_lag, self.most(first.at, last.at), last_lag].into_iter().flatten().max();
        Lagged { first: first_lag, most, last: last_lag }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Identity;
    use crate::model::generation::{StepRef, TokensAt};

    const MS: EventNanos = 1_000_000;

    /// Its first output is stamped at `first` ms, its last at `last` ms, each received 1 ms later.
    fn generation(first: u64, last: u64, taken_up: Option<u64>) -> Generation {
        let step = StepRef { engine: 0, stamp: 0 };
        let tokens = |at: u64| TokensAt { at: at * MS, received: (at + 1) * MS, tokens: 1, step };
        let mut generation = Generation::new("r".into(), Identity::default(), 0);
        (generation.first, generation.last) = (Some(tokens(first)), Some(tokens(last)));
        generation.taken_up = taken_up.map(|at| at * MS);
        generation
    }

    fn lags(messages: &[(u64, u64)]) -> Lags {
        let mut lags = Lags::default();
        for &(stamp, at) in messages {
            lags.has(stamp * MS, at * MS, &Sends::default());
        }
        lags
    }

    /// First, most and last, ms.
    fn seen(lags: &Lags, of: &Generation) -> [Option<u64>; 3] {
        let Lagged { first, most, last } = lags.of(of, &Sends::default());
        [first, most, last].map(|lag| lag.map(|ns| ns / MS))
    }

    #[test]
    fn the_most_is_of_the_messages_between_the_first_output_and_the_last() {
        // stamped 10, 20, 30, 40 ─ received 11, 21, 31, 41 ─ the loop stands still: got to 11, 90, 91, 92
        let mut lags = lags(&[(10, 11), (20, 21), (30, 31), (40, 41)]);
        assert_eq!(seen(&lags, &generation(10, 40, None)), [Some(1); 3], "of what only was received");
        for (stamp, at) in [(10, 11), (20, 90), (30, 91), (40, 92)] {
            lags.has(stamp * MS, at * MS, &Sends::default());
        }
        assert_eq!(seen(&lags, &generation(10, 40, None)), [Some(1), Some(70), Some(52)]);
        assert_eq!(seen(&lags, &generation(30, 40, Some(95))), [Some(65), Some(65), Some(52)], "taken up later still");
        assert_eq!(seen(&lags, &generation(10, 10, None)), [Some(1), Some(1), Some(1)], "one token");
    }

    #[test]
    fn without_an_output_nothing_is_known() {
        let mut none = generation(10, 40, None);
        (none.first, none.last) = (None, None);
        assert_eq!(lags(&[(10, 11)]).of(&none, &Sends::default()), Lagged::default());
    }

    #[test]
    fn a_long_answer_keeps_its_worst_moment_in_bounded_memory() {
        // a message each ms, 1 ms late; that at 500 ms is 300 ms late
        let mut lags = Lags::default();
        for stamp in 1..100_000 {
            lags.has(stamp * MS, (stamp + if stamp == 500 { 300 } else { 1 }) * MS, &Sends::default());
            assert!(lags.lags.len() <= MAX);
        }
        assert_eq!(seen(&lags, &generation(1, 99_999, None)), [Some(1), Some(300), Some(1)]);
        assert_eq!(seen(&lags, &generation(99_000, 99_999, None))[1], Some(1));
    }

    #[test]
    fn stamps_in_any_order_and_of_any_size_are_taken() {
        let mut lags = Lags::default();
        for stamp in [u64::MAX, 0, 5, u64::MAX, 3] {
            lags.has(stamp, stamp / 2, &Sends::default());
            lags.has(stamp, u64::MAX, &Sends::default());
        }
        assert_eq!(lags.most(0, u64::MAX), Some(u64::MAX));
    }

    #[test]
    fn what_was_sent_late_is_known_by_its_stamp_the_newest_of_many() {
        let mut sends = Sends::default();
        for (stamp, at) in [(30, 60), (10, 40), (20, 24)] {
            sends.sent(stamp * MS, at * MS);
        }
        let of = |sends: &Sends, stamp| sends.of(stamp * MS).map(|at| at / MS);
        assert_eq!([10, 20, 30, 31].map(|stamp| of(&sends, stamp)), [40, 20, 60, 31].map(Some), "4 ms are not late");
        (0..2_000).for_each(|n| sends.sent((100 + n) * MS, (200 + n) * MS));
        assert_eq!((sends.late.len(), of(&sends, 100), of(&sends, 2_099)), (MAX_LATE, None, Some(2_199)));
        // What it was late with is not known any more: no lag is made up, but of when it was received.
        let mut old = generation(100, 2_099, Some(150));
        old.last.as_mut().unwrap().received = 2_201 * MS;
        assert_eq!(Lags::default().of(&old, &sends), Lagged { first: None, most: Some(2 * MS), last: Some(2 * MS) });
    }
}
