//! Every map and every global that user space sets, in one place. Names are the loader's contract.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use tracer_ebpf::wire::net::{CAPTURE_MAX, CLASSES};

/// Traced thread groups: tgid → [`crate::filter`] flags.
#[map]
pub static TARGETS: HashMap<u32, u32> = HashMap::with_max_entries(4096, 0);

/// What a descriptor is: `tgid << 32 | fd` → `CLASS_*`. Absent means unknown.
#[map]
pub static DESCRIPTORS: HashMap<u64, u32> = HashMap::with_max_entries(65_536, 0);

/// Request edges: few, small, and never starved by payloads.
#[map]
pub static EDGES: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Payloads.
#[map]
pub static DATA: RingBuf = RingBuf::with_byte_size(1 << 23, 0);

/// Index into [`DROPS`].
pub const DROPS_EDGES: u32 = 0;
/// Index into [`DROPS`].
pub const DROPS_DATA: u32 = 1;

/// Records that found their ring full, since the load; one counter a ring and CPU.
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

/// Where a payload record is put together. Twice [`CAPTURE_MAX`] so that offset + length of a gathered piece stay inside in
/// the verifier's arithmetic, which bounds each of them alone.
#[repr(C, align(8))]
pub struct Scratch {
    pub bytes: [u8; size_of::<tracer_ebpf::wire::net::Data>() + 2 * CAPTURE_MAX],
}

/// One [`Scratch`] a CPU. A plain array indexed by CPU, because a per-CPU map's value may not exceed 32 KiB. User space sets
/// the size to the number of possible CPUs.
#[map]
pub static SCRATCH: Array<Scratch> = Array::with_max_entries(1, 0);

/// Key of [`CALLS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CallKey {
    pub thread: u64,
    /// One a probed point, so that probed functions may call each other.
    pub cookie: u64,
}

/// When a thread entered a probed function. Least recently used entries go first: a thread may die inside a call.
#[map]
pub static CALLS: LruHashMap<CallKey, u64> = LruHashMap::with_max_entries(8192, 0);

/// Capture caps in bytes, by [`tracer_ebpf::wire::net::cap_index`].
#[unsafe(no_mangle)]
static CAPS: [u32; CLASSES * 2] = [256, 256, 0, 0, 16_384, 4096, 16_384, 16_384];

/// A ring that holds more than this many bytes wakes its reader; a quarter of the ring.
#[unsafe(no_mangle)]
static EDGES_WAKE_BYTES: u64 = 1 << 18;
#[unsafe(no_mangle)]
static DATA_WAKE_BYTES: u64 = 1 << 21;

/// Offsets of `pid` and `tgid` in this kernel's `task_struct`, from its BTF.
#[unsafe(no_mangle)]
static TASK_PID_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
static TASK_TGID_OFFSET: u32 = 0;

/// Reads a global that the loader may have replaced; a plain read would be folded to the initial value.
macro_rules! global {
    ($name:ident) => {
        // SAFETY: a live, aligned static of this object.
        unsafe { core::ptr::read_volatile(&raw const $name) }
    };
}

pub fn cap(index: usize) -> u32 {
    let base = (&raw const CAPS).cast::<u32>();
    // SAFETY: the mask keeps the index inside the 8 elements.
    unsafe { core::ptr::read_volatile(base.add(index & 7)) }
}

pub fn edges_wake_bytes() -> u64 {
    global!(EDGES_WAKE_BYTES)
}

pub fn data_wake_bytes() -> u64 {
    global!(DATA_WAKE_BYTES)
}

pub fn task_pid_offset() -> u64 {
    u64::from(global!(TASK_PID_OFFSET))
}

pub fn task_tgid_offset() -> u64 {
    u64::from(global!(TASK_TGID_OFFSET))
}
