//! Who is traced.

use crate::maps::TARGETS;

/// The flags of a traced thread group.
#[inline(always)]
pub fn target(tgid: u32) -> Option<u32> {
    // SAFETY: a u32 value; a torn or recycled read is a stale flag at worst.
    unsafe { TARGETS.get(tgid) }.copied()
}
