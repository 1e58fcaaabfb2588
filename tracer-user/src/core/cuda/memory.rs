//! Device memory of a process: what it holds, and held at most, as the kernel side keeps it.
//!
//! Of what was there before the attach nothing is known; freeing it changes nothing. Caching allocators hold what they do not use.

#[derive(Debug, Default)]
pub(super) struct Memory {
    live: u64,
    peak: u64,
}

impl Memory {
    /// It holds so much; `peak`: and held so much at some time.
    pub(super) fn holds(&mut self, live: u64, peak: u64) {
        self.live = live;
        self.peak = self.peak.max(live).max(peak);
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
    fn a_peak_that_no_record_told_is_known() {
        // 100 · (150 and the frees are lost) · 50, with the peak that was kept
        let mut memory = Memory::default();
        memory.holds(100, 0);
        assert_eq!((memory.live(), memory.peak()), (100, 100));
        memory.holds(50, 150);
        assert_eq!((memory.live(), memory.peak()), (50, 150));
        memory.holds(60, 0);
        assert_eq!((memory.live(), memory.peak()), (60, 150));
    }
}
