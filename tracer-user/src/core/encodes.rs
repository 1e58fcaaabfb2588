//! Calls of the tokenizer, until the request that each belongs to is sent.
//!
//! Enters: calls as they return, and requests as they leave the front end. Leaves: the call that made a request's tokens. Bounded: so
//! many calls a process, and a minute of them.

use std::collections::{BTreeMap, VecDeque};

use crate::input::EventNanos;
use crate::model::generation::Generation;

/// `encode()` calls of a process that wait for their request.
const MAX_CALLS: usize = 1_024;
/// Calls older than this belong to no request, ns.
const AGE: EventNanos = 60_000_000_000;
/// The arrival stamp is a wall-clock reading, converted: its error, ns.
const STAMP_ERROR: EventNanos = 200_000;

#[derive(Debug, Clone, Copy)]
struct Call {
    entered: EventNanos,
    returned: EventNanos,
    used: bool,
}

/// Calls by process, in the order of their returns.
#[derive(Debug, Default)]
pub(super) struct Encodes {
    calls: BTreeMap<u32, VecDeque<Call>>,
}

impl Encodes {
    pub(super) fn returned(&mut self, process: u32, entered: EventNanos, returned: EventNanos) {
        let calls = self.calls.entry(process).or_default();
        if calls.len() == MAX_CALLS {
            calls.pop_front();
        }
        calls.push_back(Call { entered, returned, used: false });
    }

    /// The call that made this request's tokens: the first unused one between its arrival and its sending, or (one call for several
    /// prompts) the last used one.
    pub(super) fn take(&mut self, process: u32, generation: &Generation) -> Option<(EventNanos, EventNanos)> {
        let sent = generation.added?;
        // Before 0.17 the arrival is stamped after tokenising: nothing bounds the call from below.
        let from = generation.arrival.filter(|_| generation.arrival_before_tokenizing);
        let from = from.map_or(0, |at| at.saturating_sub(STAMP_ERROR));
        let child = generation.identity.sample.is_some_and(|sample| sample > 0);
        let calls = self.calls.get_mut(&process)?;
        let fits = |call: &Call| call.entered >= from && call.returned <= sent;
        let fresh = if child { None } else { calls.iter_mut().find(|call| !call.used && fits(call)) };
        if let Some(call) = fresh {
            call.used = true;
            return Some((call.entered, call.returned));
        }
        calls.iter().rev().find(|call| call.used && fits(call)).map(|call| (call.entered, call.returned))
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, now: EventNanos) {
        for calls in self.calls.values_mut() {
            while calls.front().is_some_and(|call| call.returned.saturating_add(AGE) < now) {
                calls.pop_front();
            }
        }
    }

    pub(super) fn ended(&mut self, process: u32) {
        self.calls.remove(&process);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn sent(id: &str, arrival: EventNanos, added: EventNanos) -> Generation {
        let mut generation = Generation::new(Arc::from(id), crate::engine::ENGINES[0].identify(id, None), added);
        generation.added = Some(added);
        generation.arrival = Some(arrival);
        generation.arrival_before_tokenizing = true;
        generation
    }

    #[test]
    fn each_request_takes_the_first_call_of_its_own_time() {
        // arrival 1 ms ─ call 2-3 ─ call 4-5 ─ two requests sent at 6 and 7
        let ms = |n: u64| n * 1_000_000;
        let mut encodes = Encodes::default();
        encodes.returned(1, ms(2), ms(3));
        encodes.returned(1, ms(4), ms(5));
        assert_eq!(encodes.take(1, &sent("a-0123abcd", ms(1), ms(6))), Some((ms(2), ms(3))));
        assert_eq!(encodes.take(1, &sent("b-0123abcd", ms(1), ms(7))), Some((ms(4), ms(5))));
        assert_eq!(encodes.take(2, &sent("c-0123abcd", ms(1), ms(7))), None, "another process's");
    }

    #[test]
    fn samples_of_one_prompt_share_a_call_and_it_expires() {
        let ms = |n: u64| n * 1_000_000;
        let mut encodes = Encodes::default();
        encodes.returned(1, ms(2), ms(3));
        assert_eq!(encodes.take(1, &sent("0_a-0123abcd", ms(1), ms(6))), Some((ms(2), ms(3))));
        assert_eq!(encodes.take(1, &sent("1_a-0123abcd", ms(1), ms(6))), Some((ms(2), ms(3))));
        encodes.expire(ms(3) + AGE + 1);
        assert_eq!(encodes.take(1, &sent("1_a-0123abcd", ms(1), ms(6))), None);
    }
}
