//! How much all servers together may hold, and who lets go when it is more.
//!
//! Enters: what each core holds, whenever that changed; who holds it, when it is too much. Leaves: the largest holders, so many that some
//! of the budget is free afterwards: the search goes through all that is held, and comes again only once that is used up. Invariant: the
//! same holders are chosen for the same sizes, whatever order they are named in.

use crate::core::Held;
use crate::input::Holder;

/// Bytes that all servers hold at most until something is whole: messages whose end has not come, and requests that are open. A request
/// whose answer is long takes some 20 KiB, so these are 12,000: the engines of a large node, each with 1,024 that run.
const MAX_HELD: usize = 256 << 20;
/// Of which so much is there however many connections are followed.
const LEAST: usize = MAX_HELD / 4;
/// The messages' part of it: 1,024 front ends' first output messages.
const MAX_MESSAGES: usize = 24 << 20;
/// What a connection takes by itself, besides what it holds, bytes (measured: 560 in a log of 130,000).
const CONNECTION_BYTES: usize = 560;
/// By so much more a recording is cut too: it has its own word of who let go, unless it is made to have none.
const RECORDED: usize = 16 << 20;

/// What is held now, of all servers.
#[derive(Debug, Default)]
pub(super) struct Budget {
    held: Held,
}

impl Budget {
    /// A core that held `before` holds `now`.
    pub(super) fn moved(&mut self, before: Held, now: Held) {
        let Held { messages, requests, connections } = &mut self.held;
        *messages = (*messages + now.messages).saturating_sub(before.messages);
        *requests = (*requests + now.requests).saturating_sub(before.requests);
        *connections = (*connections + now.connections).saturating_sub(before.connections);
    }

    /// Bytes that may be held beside the connections themselves.
    fn room(&self) -> usize {
        MAX_HELD.saturating_sub(self.held.connections.saturating_mul(CONNECTION_BYTES)).max(LEAST)
    }

    fn is_over_by(&self, more: usize) -> bool {
        self.held.messages > MAX_MESSAGES + more || self.held.messages + self.held.requests > self.room() + more
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over_by(0)
    }

    /// The same, for what a recording makes of it.
    pub(super) fn is_over_recorded(&self) -> bool {
        self.is_over_by(RECORDED)
    }

    /// Who lets go, by server, of all holders and the bytes and server of each. Where messages alone are too much, of these a quarter
    /// is freed, else an eighth of all: what requests leave as they go takes room too.
    pub(super) fn choose(&self, mut all: Vec<(usize, usize, Holder)>, servers: usize) -> Vec<Vec<Holder>> {
        let Held { messages, requests, .. } = self.held;
        let mut free = if messages > MAX_MESSAGES {
            all.retain(|(_, _, holder)| matches!(holder, Holder::Connection(_)));
            messages - MAX_MESSAGES / 4 * 3
        } else {
            (messages + requests).saturating_sub(self.room() / 8 * 7)
        };
        all.sort_unstable_by_key(|&(held, server, holder)| (std::cmp::Reverse(held), server, holder));
        let mut chosen = vec![Vec::new(); servers];
        for (held, server, holder) in all {
            if free == 0 {
                break;
            }
            if let Some(of) = chosen.get_mut(server) {
                of.push(holder);
            }
            free = free.saturating_sub(held);
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::engine::{Identity, RequestOutput};
    use crate::input::End;
    use crate::model::exchange::Exchange;
    use crate::model::generation::{Generation, StepRef};

    #[test]
    fn the_largest_let_go_whatever_order_they_are_named_in() {
        // 20 connections and requests of two servers hold 1 to 20 parts of a budget that is just over
        let part = MAX_HELD / 210 + 1;
        let mut all: Vec<_> = (0..20)
            .map(|n| {
                let holder = if n % 3 == 0 { Holder::Request(n) } else { Holder::Connection(End(n)) };
                (part * (n as usize + 1), n as usize % 2, holder)
            })
            .collect();
        let mut budget = Budget::default();
        let held = Held { messages: 20 << 20, requests: 210 * part - (20 << 20), connections: 0 };
        budget.moved(Held::default(), held);
        assert!(budget.is_over() && !budget.is_over_recorded());
        let chosen = budget.choose(all.clone(), 2);
        // 20 and 19 parts of 210 are more than an eighth.
        assert_eq!(chosen, [vec![Holder::Request(18)], vec![Holder::Connection(End(19))]]);
        all.reverse();
        assert_eq!(budget.choose(all, 2), chosen);
    }

    #[test]
    fn where_messages_are_too_much_connections_let_go_and_no_requests() {
        // a request of 2 MiB ─ 25 connections with a MiB each
        let mut all = vec![(2 << 20, 0, Holder::Request(1))];
        all.extend((0..25).map(|n| (1 << 20, 0, Holder::Connection(End(n)))));
        let mut budget = Budget::default();
        budget.moved(Held::default(), Held { messages: 25 << 20, requests: 2 << 20, connections: 25 });
        assert!(budget.is_over());
        let expected: Vec<Holder> = (0..7).map(|n| Holder::Connection(End(n))).collect();
        assert_eq!(budget.choose(all, 1), [expected]);
    }

    #[test]
    fn the_engines_of_a_large_node_keep_all_that_runs() {
        // 8 engines with 1,024 requests each, a connection and a response of a thousand tokens to each
        let mut generation = Generation::new("chatcmpl-".repeat(8).into(), Identity::default(), 0);
        for n in 0..1_000 {
            let output = RequestOutput { tokens: 1, ..RequestOutput::default() };
            let step = StepRef { engine: 0, stamp: n };
            // One token in ten is slow: outliers are kept longest.
            let at = n as u64 * 1_000 + if n % 10 == 0 { 900 } else { 0 };
            generation.take(&output, at, at, step, &Clock::default());
        }
        let requests = 8 * 1_024 * (generation.held_bytes() + size_of::<Exchange>() + 1_024);
        let mut budget = Budget::default();
        budget.moved(Held::default(), Held { messages: MAX_MESSAGES, requests, connections: 8 * 1_024 });
        assert!(!budget.is_over(), "{} bytes each", generation.held_bytes());
    }

    #[test]
    fn many_connections_leave_less_room_and_never_none() {
        // 210 MiB are held ─ with 50,000 connections: as before ─ with 100,000: too much ─ a quarter of the budget is always there
        let is_over = |mib: usize, connections| {
            let mut budget = Budget::default();
            budget.moved(Held::default(), Held { messages: 0, requests: mib << 20, connections });
            budget.is_over()
        };
        assert_eq!((is_over(210, 50_000), is_over(210, 100_000)), (false, true));
        assert!(!is_over(64, 10_000_000));
    }
}
