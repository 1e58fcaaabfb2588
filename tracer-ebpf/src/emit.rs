//! Records into rings: wake-up policy and loss counting.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    maps::{RingBuf, ring_buf::RingBufEntry},
};
use tracer_ebpf::wire::header::Header;
use tracer_ebpf::wire::ring;

use crate::maps::{self, DATA, DROPS, EDGES, LAUNCHES};

const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
const BPF_RB_AVAIL_DATA: u64 = 0;

/// The header of a record that the current thread causes.
#[inline(always)]
pub fn header(at: u64, pid_tgid: u64, kind: u32) -> Header {
    Header { at, process: (pid_tgid >> 32) as u32, thread: pid_tgid as u32, kind, pad: 0 }
}

/// The reader drains by timer; it is woken only when waiting for the timer would risk the ring.
#[inline(always)]
fn wake(ring: &RingBuf, above: u64) -> u64 {
    if ring.query(BPF_RB_AVAIL_DATA) > above { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }
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

/// Puts a fixed-size record into a ring, which has the index `RING`.
#[inline(always)]
pub fn record<T: 'static, const RING: u32>(ring: &RingBuf, record: &T) {
    if ring.output::<T>(record, wake(ring, maps::wake_bytes::<RING>())).is_err() {
        count_drop(RING);
    }
}

/// Puts a fixed-size record into the ring of request edges.
#[inline(always)]
pub fn edge<T: 'static>(edge: &T) {
    record::<T, { ring::EDGES }>(&EDGES, edge);
}

/// Room for a record in the ring of CUDA calls; counted where there is none. It is to be written, and handed to [`launched`].
#[inline(always)]
pub fn launch_room<T: 'static>() -> Option<RingBufEntry<T>> {
    let room = LAUNCHES.reserve::<T>(0);
    if room.is_none() {
        count_drop(ring::LAUNCHES);
    }
    room
}

/// The record is written. `look`: see whether the reader should be woken; the ring holds thousands of records, so not each has to.
#[inline(always)]
pub fn launched<T: 'static>(record: RingBufEntry<T>, look: bool) {
    let flags = if look { wake(&LAUNCHES, maps::wake_bytes::<{ ring::LAUNCHES }>()) } else { BPF_RB_NO_WAKEUP };
    record.submit(flags);
}

/// Puts a payload record into the ring of payloads.
#[inline(always)]
pub fn data(record: &[u8]) {
    if DATA.output::<[u8]>(record, wake(&DATA, maps::wake_bytes::<{ ring::DATA }>())).is_err() {
        count_drop(ring::DATA);
    }
}

/// `CLOCK_MONOTONIC`, ns.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_ktime_get_ns() }
}
