//! The engine requests that are open, by key and by the engine's id, and the beam searches that some are of.
//!
//! Enters: requests as they are sent, or first heard of. Leaves: which one an id means, and which are over. All engine requests of a beam
//! search go below its first one, which stands for them. Bounded: ids of finished ones are remembered so far back only.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::join::Index;
use crate::engine::Identity;
use crate::input::EventNanos;
use crate::model::beams::{Beams, Tally};
use crate::model::cuda::Share;
use crate::model::generation::{Generation, Phase};
use crate::model::record::generation_record;
use crate::output::FinishReason;
use crate::output::cuda::StepCuda;

/// Ids of finished requests that are remembered, so that an output after the end makes no new one.
const MAX_RECENT: usize = 8_192;
/// Between one stamp put on the event clock twice, ns: the clock is followed meanwhile, and two requests of one id are further apart.
const SAME_ARRIVAL: EventNanos = 1_000_000;
/// Engine requests of a beam search whose metrics wait for its end.
const MAX_TALLIES: usize = 1_024;

#[derive(Debug, Default)]
pub(super) struct Generations {
    /// Boxed: nodes of a tree that grows at one end stay half empty.
    open: BTreeMap<u64, Box<Generation>>,
    /// Bytes that they hold.
    held: usize,
    by_id: HashMap<Arc<str>, u64>,
    /// Those that are over and belong to no exchange yet.
    unclaimed: BTreeSet<u64>,
    /// Beam searches by their id: the engine request that stands for each; and whom the others belong to.
    searches: HashMap<String, u64>,
    lead_of: BTreeMap<u64, u64>,
    /// With the arrival of each, as long as its id is remembered.
    recent: HashMap<Arc<str>, Option<EventNanos>>,
    recent_order: VecDeque<Arc<str>>,
}

impl Generations {
    pub(super) fn get(&self, key: u64) -> Option<&Generation> {
        self.open.get(&key).map(Box::as_ref)
    }

    /// Bytes that are held of them.
    pub(super) fn held_bytes(&self) -> usize {
        self.held
    }

    /// One that held `before` holds `now`.
    pub(super) fn weigh(&mut self, before: usize, now: usize) {
        self.held = (self.held + now).saturating_sub(before);
    }

    /// To change anything but what is held of it, or with [`Self::weigh`].
    pub(super) fn get_mut(&mut self, key: u64) -> Option<&mut Generation> {
        self.open.get_mut(&key).map(Box::as_mut)
    }

    /// The newest one with this id of the engine's.
    pub(super) fn key_of(&self, id: &str) -> Option<u64> {
        self.by_id.get(id).copied()
    }

    pub(super) fn of_id(&self, id: &str) -> Option<&Generation> {
        self.open.get(self.by_id.get(id)?).map(Box::as_ref)
    }

    /// One with this id is over since not long.
    pub(super) fn was_recent(&self, id: &str) -> bool {
        self.recent.contains_key(id)
    }

    /// One with this id and this arrival is over since not long: what is seen of its ADD now is the other end's.
    pub(super) fn is_gone(&self, id: &str, arrival: Option<EventNanos>) -> bool {
        let gone = self.recent.get(id).copied().flatten();
        gone.zip(arrival).is_some_and(|(gone, arrival)| gone.abs_diff(arrival) < SAME_ARRIVAL)
    }

    /// In the order in which they came.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Generation)> {
        self.open.iter().map(|(&key, generation)| (key, &**generation))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Generation> {
        self.open.values_mut().map(Box::as_mut)
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// One that was not known. Of a beam search only the first is found by its ids.
    pub(super) fn insert(&mut self, key: u64, mut generation: Generation, index: &mut Index) {
        self.recent.remove(&generation.id);
        self.by_id.insert(Arc::clone(&generation.id), key);
        match generation.identity.search.clone() {
            Some(search) => {
                // The search tokenises once, before it makes its engine requests and their stamps.
                generation.arrival_before_tokenizing = false;
                let lead = *self.searches.entry(search).or_insert(key);
                if lead == key {
                    index.add_generation(&generation.identity, key);
                } else {
                    self.lead_of.insert(key, lead);
                    self.of_beams(lead, |beams| beams.open += 1);
                }
            }
            None => index.add_generation(&generation.identity, key),
        }
        self.held += generation.held_bytes();
        self.open.insert(key, Box::new(generation));
    }

    /// Changes what is kept of the beams below one; gives the exchange that it belongs to.
    fn of_beams(&mut self, lead: u64, change: impl FnOnce(&mut Beams)) -> Option<u64> {
        let lead = self.open.get_mut(&lead)?;
        let held = lead.held_bytes();
        change(lead.beams.get_or_insert_default());
        self.held = (self.held + lead.held_bytes()).saturating_sub(held);
        lead.exchange
    }

    pub(super) fn remove(&mut self, key: u64, index: &mut Index) -> Option<Generation> {
        let generation = *self.open.remove(&key)?;
        self.held = self.held.saturating_sub(generation.held_bytes());
        self.unclaimed.remove(&key);
        self.lead_of.remove(&key);
        index.remove_generation(&generation.identity, key);
        self.forget_search(&generation.identity, key, index);
        // A client that reuses an id may already have the next one under it.
        if self.by_id.get(&generation.id) == Some(&key) {
            self.by_id.remove(&generation.id);
            self.remember_gone(&generation);
        }
        Some(generation)
    }

    /// The search is finished: later engine requests with its id are another one's.
    fn forget_search(&mut self, ids: &Identity, key: u64, index: &mut Index) {
        if let Some(search) = &ids.search
            && self.searches.get(search) == Some(&key)
        {
            self.searches.remove(search);
            let below: Vec<u64> = self.lead_of.iter().filter(|(_, lead)| **lead == key).map(|(&k, _)| k).collect();
            for key in below {
                self.lead_of.remove(&key);
                // Nobody waits for it any more; outputs that still come for it are dropped.
                self.remove(key, index);
            }
        }
    }

    fn remember_gone(&mut self, gone: &Generation) {
        if self.recent.insert(Arc::clone(&gone.id), gone.arrival).is_none() {
            self.recent_order.push_back(Arc::clone(&gone.id));
        }
        if self.recent_order.len() > MAX_RECENT
            && let Some(old) = self.recent_order.pop_front()
        {
            self.recent.remove(&old);
        }
    }

    /// It goes below another one of its beam search.
    pub(super) fn has_lead(&self, key: u64) -> bool {
        self.lead_of.contains_key(&key)
    }

    /// It is over: gives the exchange that may be over with it. Without one it waits to be claimed; one of a beam search is folded
    /// into its first.
    #[must_use]
    pub(super) fn settle(&mut self, key: u64, index: &mut Index) -> Option<u64> {
        if self.lead_of.contains_key(&key) {
            return self.absorb(key, index);
        }
        let exchange = self.open.get(&key).and_then(|generation| generation.exchange);
        if exchange.is_none() {
            self.unclaimed.insert(key);
        }
        exchange
    }

    fn absorb(&mut self, key: u64, index: &mut Index) -> Option<u64> {
        let lead = self.lead_of.remove(&key)?;
        let generation = self.remove(key, index)?;
        self.open.get_mut(&lead)?.lost |= generation.lost;
        let reason = generation.finish();
        self.of_beams(lead, |beams| beams.take(&generation, reason, || generation_record(&generation, None)))
    }

    /// What ran where something ended is over, with an error. Gives the keys.
    #[must_use]
    pub(super) fn fail(&mut self, at: EventNanos, hit: impl Fn(&Generation) -> bool) -> Vec<u64> {
        let mut over = Vec::new();
        for (&key, generation) in &mut self.open {
            if !generation.settled() && hit(generation) {
                generation.phase = Phase::Over { at, reason: FinishReason::Error };
                over.push(key);
            }
        }
        over
    }

    /// A step did that with CUDA, for those that are still open and others.
    pub(super) fn share(&mut self, batch: &[u64], step: &StepCuda) {
        for key in batch {
            if let Some(generation) = self.open.get_mut(key) {
                self.held += if generation.cuda.is_none() { size_of::<Share>() } else { 0 };
                generation.cuda.get_or_insert_default().add(step, batch.len());
            }
        }
    }

    /// Whether one and the beams below it are over.
    pub(super) fn is_settled(&self, key: u64) -> bool {
        self.open.get(&key).is_none_or(|g| g.settled() && g.beams.as_ref().is_none_or(|beams| beams.open == 0))
    }

    /// Those that are over and belong to no exchange yet.
    pub(super) fn unclaimed(&self) -> impl Iterator<Item = (u64, &Generation)> {
        self.unclaimed.iter().filter_map(|&key| Some((key, self.get(key)?)))
    }

    /// An exchange claimed it.
    pub(super) fn claimed(&mut self, key: u64, exchange: u64) {
        self.unclaimed.remove(&key);
        if let Some(generation) = self.open.get_mut(&key) {
            generation.exchange = Some(exchange);
        }
    }

    /// Metrics of long beam searches, which do not wait for their end so that what is held stays small: the first engine request of
    /// each, and the tallies of others.
    pub(super) fn take_tallies(&mut self) -> Vec<(u64, Vec<Tally>)> {
        let mut leads: Vec<u64> = self.searches.values().copied().collect();
        leads.sort_unstable();
        let mut full = Vec::new();
        for lead in leads {
            let beams = self.open.get_mut(&lead).and_then(|generation| generation.beams.as_deref_mut());
            if let Some(beams) = beams.filter(|beams| beams.tallies.len() >= MAX_TALLIES) {
                let held = beams.held_bytes();
                full.push((lead, std::mem::take(&mut beams.tallies)));
                self.held = (self.held + beams.held_bytes()).saturating_sub(held);
            }
        }
        full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(id: &str) -> Generation {
        Generation::new(Arc::from(id), crate::engine::ENGINES[0].identify(id, None), 1)
    }

    #[test]
    fn an_id_that_is_used_again_means_the_newer_one() {
        // a (1) ─ a (2) ─ 1 is removed ─ 2 is removed
        let (mut generations, mut index) = (Generations::default(), Index::default());
        generations.insert(1, generation("cmpl-a-0-0123abcd"), &mut index);
        generations.insert(2, generation("cmpl-a-0-0123abcd"), &mut index);
        generations.remove(1, &mut index);
        assert_eq!(generations.key_of("cmpl-a-0-0123abcd"), Some(2));
        assert!(!generations.was_recent("cmpl-a-0-0123abcd"));
        generations.remove(2, &mut index);
        assert!(generations.was_recent("cmpl-a-0-0123abcd"));
        assert_eq!(generations.key_of("cmpl-a-0-0123abcd"), None);
    }

    #[test]
    fn what_is_remembered_of_finished_ones_is_bounded() {
        let (mut generations, mut index) = (Generations::default(), Index::default());
        for key in 0..10_000_u64 {
            generations.insert(key, generation(&format!("cmpl-{key}-0-0123abcd")), &mut index);
            generations.remove(key, &mut index);
        }
        assert!(!generations.was_recent("cmpl-0-0-0123abcd"));
        assert!(generations.was_recent("cmpl-9999-0-0123abcd"));
        assert!(generations.recent.len() <= MAX_RECENT && generations.recent_order.len() <= MAX_RECENT);
    }

    #[test]
    fn one_that_is_over_waits_until_an_exchange_claims_it() {
        let (mut generations, mut index) = (Generations::default(), Index::default());
        generations.insert(1, generation("cmpl-a-0-0123abcd"), &mut index);
        assert_eq!(generations.settle(1, &mut index), None);
        assert_eq!(generations.unclaimed().map(|(key, _)| key).collect::<Vec<_>>(), [1]);
        generations.claimed(1, 9);
        assert_eq!(generations.unclaimed().count(), 0);
        assert_eq!(generations.settle(1, &mut index), Some(9));
    }

    #[test]
    fn beams_are_folded_into_the_first_of_their_search() {
        // the prompt (1) ─ two beams (2, 3) ─ both are over
        let (mut generations, mut index) = (Generations::default(), Index::default());
        for (key, id) in [
            (1, "cmpl-a-0011223344556677-beam-0-0123abcd"),
            (2, "cmpl-a-8899aabbccddeeff-beam-0-0123abcd"),
            (3, "cmpl-a-8899aabbccddeeff-beam-1-0123abce"),
        ] {
            generations.insert(key, generation(id), &mut index);
        }
        assert!(!generations.has_lead(1) && generations.has_lead(2) && generations.has_lead(3));
        assert_eq!(index.generations_of("cmpl-a"), [1]);
        for key in generations.fail(5, |_| true) {
            let _ = generations.settle(key, &mut index);
        }
        assert_eq!(generations.len(), 1);
        assert!(generations.is_settled(1));
        assert_eq!(generations.get(1).and_then(|g| g.beams.as_ref()).map(|beams| beams.count), Some(2));
    }
}
