//! Device memory of processes: what each holds, and held at most, whether or not the records of its calls find room.

use tracer_ebpf::wire::cuda::Block;
use tracer_ebpf::wire::ring;

use super::process;
use crate::emit;
use crate::maps::{BLOCKS, PEAKS, add};

/// A block was allocated; what the process holds now, bytes.
#[inline(always)]
pub(super) fn allocated(pid_tgid: u64, address: u64, bytes: u64) -> u64 {
    let Some(process) = process(pid_tgid) else { return 0 };
    let block = Block { process: pid_tgid >> 32, address };
    // SAFETY: a u64 that is replaced as a whole. One that is there: its free was not seen.
    let before = unsafe { BLOCKS.get(block) }.copied().unwrap_or(0);
    // SAFETY: a field of a map's value, of 8 bytes.
    let live = unsafe { &raw mut (*process).live };
    if BLOCKS.insert(block, bytes, 0).is_err() {
        emit::count_drop(ring::DROPS_CUDA);
    } else {
        add(live, bytes.wrapping_sub(before));
    }
    // SAFETY: as above. Volatile: with what others added meanwhile.
    let live = unsafe { core::ptr::read_volatile(live) };
    let tgid = (pid_tgid >> 32) as u32;
    if let Some(peak) = PEAKS.get_ptr_mut(tgid) {
        // SAFETY: this CPU's own value.
        unsafe {
            if live > *peak {
                *peak = live;
            }
        }
    } else {
        let _ = PEAKS.insert(tgid, live, 0);
    }
    live
}

/// A block is freed: its bytes, 0 where it was not seen being allocated, and what the process holds now.
#[inline(always)]
pub(super) fn freed(pid_tgid: u64, address: u64) -> (u64, u64) {
    let Some(process) = process(pid_tgid) else { return (0, 0) };
    let block = Block { process: pid_tgid >> 32, address };
    // SAFETY: a u64 that is replaced as a whole.
    let known = unsafe { BLOCKS.get(block) }.copied().unwrap_or(0);
    // SAFETY: a field of a map's value, of 8 bytes.
    let live = unsafe { &raw mut (*process).live };
    let bytes = if known != 0 && BLOCKS.remove(block).is_ok() { known } else { 0 };
    if bytes != 0 {
        add(live, bytes.wrapping_neg());
    }
    // SAFETY: as above.
    (bytes, unsafe { core::ptr::read_volatile(live) })
}
