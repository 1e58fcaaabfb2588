//! Which exchanges and which engine requests carry which id: joining is a look-up, never a search.
//!
//! Enters: ids as they become known. Leaves: keys, in the order in which they came. An engine request stands under every response
//! id that it may belong to ([`ids::responses`]), an exchange under the id that its client chose and the one its response shows.

use std::collections::HashMap;

use crate::engine::ids;

/// Keys by response id.
#[derive(Debug, Default)]
pub(super) struct Index {
    exchanges: HashMap<String, Vec<u64>>,
    generations: HashMap<String, Vec<u64>>,
}

impl Index {
    pub fn add_exchange(&mut self, id: &str, key: u64) {
        let keys = self.exchanges.entry(id.to_owned()).or_default();
        if !keys.contains(&key) {
            keys.push(key);
        }
    }

    pub fn remove_exchange(&mut self, id: &str, key: u64) {
        remove(&mut self.exchanges, id, key);
    }

    pub fn add_generation(&mut self, external: &str, key: u64) {
        for id in ids::responses(external) {
            self.generations.entry(id.to_owned()).or_default().push(key);
        }
    }

    pub fn remove_generation(&mut self, external: &str, key: u64) {
        for id in ids::responses(external) {
            remove(&mut self.generations, id, key);
        }
    }

    /// Exchanges that the engine request with this external id may be of.
    pub fn exchanges_of(&self, external: &str) -> Vec<u64> {
        let mut keys: Vec<u64> =
            ids::responses(external).filter_map(|id| self.exchanges.get(id)).flatten().copied().collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Engine requests that the response with this id may be made of.
    pub fn generations_of(&self, response: &str) -> Vec<u64> {
        self.generations.get(response).cloned().unwrap_or_default()
    }
}

fn remove(map: &mut HashMap<String, Vec<u64>>, id: &str, key: u64) {
    if let Some(keys) = map.get_mut(id) {
        keys.retain(|&k| k != key);
        if keys.is_empty() {
            map.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_request_is_found_by_every_id_its_response_may_show() {
        let mut index = Index::default();
        index.add_generation("cmpl-a-0", 1);
        index.add_generation("cmpl-a-1", 2);
        index.add_generation("chatcmpl-job-7", 3);
        assert_eq!(index.generations_of("cmpl-a"), [1, 2]);
        assert_eq!(index.generations_of("chatcmpl-job-7"), [3]);
        assert_eq!(index.generations_of("chatcmpl-job"), [] as [u64; 0]);
        index.remove_generation("cmpl-a-0", 1);
        assert_eq!(index.generations_of("cmpl-a"), [2]);
    }

    #[test]
    fn exchanges_come_in_their_order_and_once() {
        let mut index = Index::default();
        index.add_exchange("cmpl-x", 9);
        index.add_exchange("cmpl-x", 4);
        index.add_exchange("cmpl-x-0", 4);
        assert_eq!(index.exchanges_of("cmpl-x-0"), [4, 9]);
        index.remove_exchange("cmpl-x", 9);
        index.remove_exchange("cmpl-x", 4);
        assert_eq!(index.exchanges_of("cmpl-x-0"), [4]);
    }
}
