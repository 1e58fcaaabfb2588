//! Device memory of a process: what it holds, and held at most.
//!
//! Of what was there before the attach nothing is known; freeing it changes nothing. Caching allocators hold what they do not use.

use std::collections::HashMap;

use crate::input::cuda::CallKind;

/// Allocations that are told apart; what finds no room is in no number, and counted as that.
const MAX_BLOCKS: usize = 262_144;

#[derive(Debug, Default)]
pub(super) struct Memory {
    blocks: HashMap<u64, u64>,
    live: u64,
    peak: u64,
    refused: u64,
}

impl Memory {
    pub(super) fn called(&mut self, what: &CallKind) {
        match *what {
            CallKind::Alloc { address, bytes } if address != 0 => {
                if self.blocks.len() >= MAX_BLOCKS && !self.blocks.contains_key(&address) {
                    self.refused += 1;
                    return;
                }
                // The same address again: its free was lost.
                let before = self.blocks.insert(address, bytes);
                self.live = self.live.saturating_sub(before.unwrap_or(0)).saturating_add(bytes);
                self.peak = self.peak.max(self.live);
            }
            CallKind::Free { address } => {
                self.live = self.live.saturating_sub(self.blocks.remove(&address).unwrap_or(0));
            }
            _ => {}
        }
    }

    /// Allocations that found no room since the last call.
    pub(super) fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    /// Bytes.
    pub(super) fn live(&self) -> u64 {
        self.live
    }

    /// Bytes.
    pub(super) fn peak(&self) -> u64 {
        self.peak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_and_was_held_at_most() {
        // 100 at 1 · 50 at 2 · 1 is freed · 9, of before the attach, is freed · 30 at 2 again, its free was lost
        let mut memory = Memory::default();
        memory.called(&CallKind::Alloc { address: 1, bytes: 100 });
        memory.called(&CallKind::Alloc { address: 2, bytes: 50 });
        memory.called(&CallKind::Free { address: 1 });
        memory.called(&CallKind::Free { address: 9 });
        assert_eq!((memory.live(), memory.peak()), (50, 150));
        memory.called(&CallKind::Alloc { address: 2, bytes: 30 });
        assert_eq!((memory.live(), memory.peak()), (30, 150));
    }
}
