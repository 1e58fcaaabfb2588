//! The KV cache as blocks: a bounded pool with prefix caching, after vLLM's `BlockPool`.
//!
//! A full block is known by the hash of all tokens up to its end. Freed blocks keep their content until they are needed
//! for something else, least recently used first.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// Index of a block.
pub type BlockId = usize;

#[derive(Debug, Clone, Default)]
struct Block {
    users: u32,
    hash: Option<u64>,
}

#[derive(Debug)]
pub struct BlockPool {
    size: usize,
    blocks: Vec<Block>,
    free: VecDeque<BlockId>,
    cached: HashMap<u64, BlockId>,
}

impl BlockPool {
    /// `count` blocks of `size` tokens.
    pub fn new(count: usize, size: usize) -> Self {
        Self { size, blocks: vec![Block::default(); count], free: (0..count).collect(), cached: HashMap::new() }
    }

    /// Share of the blocks that are in use.
    pub fn usage(&self) -> f64 {
        1.0 - self.free.len() as f64 / self.blocks.len() as f64
    }

    /// Hash of every full block of `tokens`.
    pub fn hashes(&self, tokens: &[u32]) -> Vec<u64> {
        let mut previous = 0_u64;
        tokens
            .chunks_exact(self.size)
            .map(|chunk| {
                let mut hasher = DefaultHasher::new();
                (previous, chunk).hash(&mut hasher);
                previous = hasher.finish();
                previous
            })
            .collect()
    }

    /// The longest cached prefix of `tokens`, in blocks; always short of the last token, which must be computed.
    pub fn lookup(&self, tokens: &[u32]) -> Vec<BlockId> {
        let most = tokens.len().saturating_sub(1) / self.size;
        self.hashes(tokens).iter().take(most).map_while(|hash| self.cached.get(hash).copied()).collect()
    }

    /// Takes `shared` (found by [`Self::lookup`]) and as many new blocks as make room for `tokens` tokens in `held`.
    /// False, and nothing taken, when the pool has too few.
    pub fn allocate(&mut self, held: &mut Vec<BlockId>, shared: &[BlockId], tokens: usize) -> bool {
        let fresh = tokens.div_ceil(self.size).saturating_sub(held.len() + shared.len());
        let revived = shared.iter().filter(|id| self.blocks[**id].users == 0).count();
        if fresh + revived > self.free.len() {
            return false;
        }
        for id in shared {
            if self.blocks[*id].users == 0 {
                self.free.retain(|free| free != id);
            }
            self.blocks[*id].users += 1;
            held.push(*id);
        }
        for _ in 0..fresh {
            let Some(id) = self.free.pop_front() else { return false };
            if let Some(hash) = self.blocks[id].hash.take() {
                self.cached.remove(&hash);
            }
            self.blocks[id].users = 1;
            held.push(id);
        }
        true
    }

    /// The first `computed` of `tokens` are in `held`: their full blocks can be found from now on. Blocks cached.
    pub fn cache(&mut self, held: &[BlockId], tokens: &[u32], computed: usize) -> usize {
        let hashes = self.hashes(&tokens[..computed.min(tokens.len())]);
        for (hash, id) in hashes.iter().zip(held) {
            if self.blocks[*id].hash.is_none() && !self.cached.contains_key(hash) {
                self.blocks[*id].hash = Some(*hash);
                self.cached.insert(*hash, *id);
            }
        }
        hashes.len()
    }

    /// Gives `held` back; the end of a sequence is evicted before its beginning.
    pub fn free(&mut self, held: &mut Vec<BlockId>) {
        for id in held.drain(..).rev() {
            self.blocks[id].users -= 1;
            if self.blocks[id].users == 0 {
                self.free.push_back(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_prompt_finds_its_full_blocks_but_never_its_last_token() {
        let mut pool = BlockPool::new(8, 4);
        let tokens: Vec<u32> = (0..8).collect();
        let mut held = Vec::new();
        assert!(pool.allocate(&mut held, &[], 8));
        pool.cache(&held, &tokens, 8);
        pool.free(&mut held);
        assert_eq!(pool.lookup(&tokens).len(), 1);
        assert_eq!(pool.lookup(&[&tokens[..], &[9]].concat()).len(), 2);
        assert!((pool.usage() - 0.0).abs() < f64::EPSILON);
    }

    #[test]
    fn what_does_not_fit_takes_nothing() {
        let mut pool = BlockPool::new(2, 4);
        let mut held = Vec::new();
        assert!(!pool.allocate(&mut held, &[], 9));
        assert!(held.is_empty());
        assert!(pool.allocate(&mut held, &[], 8));
    }
}
