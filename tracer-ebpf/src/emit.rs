//! Records into rings: wake-up policy and loss counting.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    maps::{RingBuf, ring_buf::RingBufEntry},
};
use tracer_ebpf::wire::header::Header;
use tracer_ebpf::wire::ring;

use crate::maps::{self, DATA, DROPS, EDGES, LAUNCHES, RARE};

const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
const BPF_RB_AVAIL_DATA: u64 = 0;

/// The header of a record that the current thread causes.
#[inline(always)]
pub fn header(at: u64, pid_tgid: u64, kind: u32) -> Header {
    Header { at, process: (pid_tgid >> 32) as u32, thread: pid_tgid as u32, kind, pad: 0 }
}

/// The ring with the index `RING`.
#[inline(always)]
fn ring_of<const RING: u32>() -> &'static RingBuf {
    match RING {
        ring::EDGES => &EDGES,
        ring::DATA => &DATA,
        ring::LAUNCHES => &LAUNCHES,
        _ => &RARE,
    }
}

/// The reader drains by timer; it is woken only when waiting for the timer would risk the ring.
#[inline(always)]
fn wake<const RING: u32>() -> u64 {
    if ring_of::<RING>().query(BPF_RB_AVAIL_DATA) > maps::wake_bytes::<RING>() {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    }
}

#[inline(always)]
pub fn count_drop(index: u32) {
    count_drops(index, 1);
}

#[inline(always)]
pub fn count_drops(index: u32, count: u64) {
    if let Some(counter) = DROPS.get_ptr_mut(index) {
        // SAFETY: this CPU's own slot, and programs here do not nest on a CPU.
        unsafe { *counter += count };
    }
}

/// Puts a record into the ring `RING`; counted where it has no room.
#[inline(always)]
pub fn put<T: ?Sized + 'static, const RING: u32>(record: &T) {
    if ring_of::<RING>().output::<T>(record, wake::<RING>()).is_err() {
        count_drop(RING);
    }
}

/// Puts a record into the ring of request edges.
#[inline(always)]
pub fn edge<T: 'static>(edge: &T) {
    put::<T, { ring::EDGES }>(edge);
}

/// Room for a record in the ring `RING`; counted where there is none. It is to be written, and handed to [`submit`].
#[inline(always)]
pub fn room<T: 'static, const RING: u32>() -> Option<RingBufEntry<T>> {
    let room = ring_of::<RING>().reserve::<T>(0);
    if room.is_none() {
        count_drop(RING);
    }
    room
}

/// The record is written. `look`: see whether the reader should be woken; a ring holds thousands of records, so not each has to.
#[inline(always)]
pub fn submit<T: 'static, const RING: u32>(record: RingBufEntry<T>, look: bool) {
    record.submit(if look { wake::<RING>() } else { BPF_RB_NO_WAKEUP });
}

/// `CLOCK_MONOTONIC`, ns.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_ktime_get_ns() }
}
