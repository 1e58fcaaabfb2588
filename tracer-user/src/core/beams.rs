//! Beam search: one engine request a beam and token. All of a search go below the first one, which stands for it.

use std::sync::Arc;

use super::Core;
use crate::model::record::generation_record;

impl Core {
    /// An engine request of a beam search is over: what it amounts to goes to the search's first one.
    pub(super) fn absorb(&mut self, key: u64) {
        let Some(lead) = self.lead_of.remove(&key) else { return };
        let Some(generation) = self.remove_generation(key) else { return };
        let Some(lead) = self.generations.get_mut(&lead) else { return };
        let reason = generation.finish();
        lead.lost |= generation.lost;
        lead.beams.get_or_insert_default().take(&generation, reason, || generation_record(&generation, None));
        if let Some(exchange) = lead.exchange {
            self.touched.push(exchange);
        }
    }

    /// Whether a generation and the beams below it are over.
    pub(super) fn is_settled(&self, key: u64) -> bool {
        self.generations.get(&key).is_none_or(|g| g.settled() && g.beams.as_ref().is_none_or(|beams| beams.open == 0))
    }

    /// The search is finished: later engine requests with its id are another one's.
    pub(super) fn forget_search(&mut self, external: &str, key: u64) {
        if let Some(search) = crate::engine::ids::beam_search(external)
            && self.searches.get(search) == Some(&key)
        {
            self.searches.remove(search);
            let below: Vec<u64> = self.lead_of.iter().filter(|(_, lead)| **lead == key).map(|(&k, _)| k).collect();
            for key in below {
                self.lead_of.remove(&key);
                // Nobody waits for it any more; outputs that still come for it are dropped.
                self.remove_generation(key);
            }
        }
    }

    /// Remembers a generation that is gone, so that an output after its end makes no new one.
    pub(super) fn remember_gone(&mut self, id: &Arc<str>) {
        if self.recent.insert(Arc::clone(id)) {
            self.recent_order.push_back(Arc::clone(id));
        }
        if self.recent_order.len() > super::MAX_RECENT
            && let Some(old) = self.recent_order.pop_front()
        {
            self.recent.remove(&old);
        }
    }
}
