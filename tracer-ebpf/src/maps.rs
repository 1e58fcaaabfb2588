//! Every map and every global that user space sets, in one place. Names are the loader's contract.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray, RingBuf},
};
use tracer_ebpf::wire::cuda::{
    BLOCKS_MAX, Block, CAPTURES_MAX, CaptureKey, FUNCTIONS_MAX, FunctionKey, LEVEL_STEPS, PROCESSES_MAX, Process,
    THREADS_MAX, Thread,
};
use tracer_ebpf::wire::net::{CAPS as CAPS_LEN, CAPTURE_MAX, Data, Descriptor, Told, UNKNOWN_CAP};
use tracer_ebpf::wire::ring::{self, BYTES, DROPS_LEN, RINGS, WAKE_PART};
use tracer_ebpf::wire::target::{DESCRIPTORS_MAX, OFFSETS_LEN};

/// Traced thread groups: tgid → flags of [`tracer_ebpf::wire::target`].
#[map]
pub static TARGETS: HashMap<u32, u32> = HashMap::with_max_entries(4096, 0);

/// What a descriptor is: `tgid << 32 | fd` → what is known of it. Of a `KNOWN` target, absent means ignored.
#[map]
pub static DESCRIPTORS: HashMap<u64, Descriptor> = HashMap::with_max_entries(DESCRIPTORS_MAX, 0);

/// What user space has said of descriptors and the kernel side has not taken over yet, by the same key. Least recently used
/// entries go first: a descriptor may be closed before its next call.
#[map]
pub static TOLD: LruHashMap<u64, Told> = LruHashMap::with_max_entries(16_384, 0);

/// Request edges: few, small, and never starved by payloads.
#[map]
pub static EDGES: RingBuf = RingBuf::with_byte_size(BYTES[ring::EDGES as usize], 0);

/// Payloads.
#[map]
pub static DATA: RingBuf = RingBuf::with_byte_size(BYTES[ring::DATA as usize], 0);

/// Calls of CUDA libraries of which there may be millions.
#[map]
pub static LAUNCHES: RingBuf = RingBuf::with_byte_size(BYTES[ring::LAUNCHES as usize], 0);

/// Those that are rare.
#[map]
pub static RARE: RingBuf = RingBuf::with_byte_size(BYTES[ring::RARE as usize], 0);

/// What found its ring or the table full, since the load, by the indices of [`tracer_ebpf::wire::ring`]; one counter a place and CPU.
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DROPS_LEN, 0);

/// A call whose capture takes more than one record or buffer, and how far it has come. In a map, because it goes on over tail
/// calls.
#[repr(C)]
pub struct Walk {
    /// What the call's records share; `offset` is the call's own.
    pub data: Data,
    /// Bytes of the call; where its head ends, and where its tail starts.
    pub total: u64,
    pub head: u64,
    pub tail: u64,
    /// The next `struct iovec`, and how many are left with it.
    pub next: u64,
    pub vectors: u64,
    /// What is left of the buffer at hand.
    pub base: u64,
    pub len: u64,
    /// Bytes of the call that are behind.
    pub position: u64,
    /// Where in the call the piece at hand starts, and how much of it is captured.
    pub start: u64,
    pub filled: u64,
    /// Bytes that are copied next.
    pub take: u64,
    /// It is a write of which only the buffers say how much was asked for.
    pub is_open: bool,
}

/// Where a payload record is put together. Twice [`CAPTURE_MAX`] so that offset + length of a gathered piece stay inside in
/// the verifier's arithmetic, which bounds each of them alone.
#[repr(C, align(8))]
pub struct Scratch {
    pub walk: Walk,
    pub head: Data,
    pub payload: [u8; 2 * CAPTURE_MAX],
}

/// One [`Scratch`] a CPU. A plain array indexed by CPU, because a per-CPU map's value may not exceed 32 KiB. User space sets
/// the size to the number of possible CPUs.
#[map]
pub static SCRATCH: Array<Scratch> = Array::with_max_entries(1, 0);

/// Its one element is the program that goes on with a [`Walk`].
#[map]
pub static CONTINUE: ProgramArray = ProgramArray::with_max_entries(1, 0);

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

/// What each thread has called of the CUDA libraries: `tgid << 32 | tid` → its sums. User space takes out what is dead.
#[map]
pub static THREADS: HashMap<u64, Thread> = HashMap::with_max_entries(THREADS_MAX, 0);

/// How often each function was launched. User space takes out those of epochs that are over.
#[map]
pub static FUNCTIONS: HashMap<FunctionKey, u64> = HashMap::with_max_entries(FUNCTIONS_MAX, 0);

/// How far behind a handle the address of its name is, by process, where it is not `NAME_AT`: a driver may be met at any time.
#[map]
pub static NAMES_AT: HashMap<u32, u32> = HashMap::with_max_entries(4096, 0);

/// What each process holds, and has sent. User space takes out what is dead.
#[map]
pub static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(PROCESSES_MAX, 0);

/// The most device memory that each process held, as the programs on each CPU saw it: without compare-and-swap no place that all write
/// keeps a maximum.
#[map]
pub static PEAKS: PerCpuHashMap<u32, u64> = PerCpuHashMap::with_max_entries(PROCESSES_MAX, 0);

/// Blocks of device memory that are held, and their bytes.
#[map]
pub static BLOCKS: HashMap<Block, u64> = HashMap::with_max_entries(BLOCKS_MAX, 0);

/// Captures that are open: their mark → the nodes that were counted. User space takes out those of processes that are gone.
#[map]
pub static OPEN: HashMap<CaptureKey, u64> = HashMap::with_max_entries(CAPTURES_MAX, 0);

/// Streams that are being captured, and the mark of their capture. One that is not in [`OPEN`] is over.
#[map]
pub static CAPTURES: LruHashMap<StreamKey, u64> = LruHashMap::with_max_entries(4096, 0);

/// Events that were recorded in a captured stream: a stream that waits for one is captured as well.
#[map]
pub static CAPTURED_EVENTS: LruHashMap<StreamKey, u64> = LruHashMap::with_max_entries(4096, 0);

/// Key of [`CAPTURES`] and [`CAPTURED_EVENTS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct StreamKey {
    pub process: u64,
    /// An event's handle; or what stands for a stream, see `capture::stream`.
    pub handle: u64,
}

/// Arguments of a timed CUDA call, until it returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pending {
    pub entered: u64,
    pub a: u64,
    pub b: u64,
    /// A stream's handle; of padded memory the address of its pitch.
    pub stream: u64,
    pub caller: u64,
}

/// Timed CUDA calls that threads are in.
#[map]
pub static PENDING: LruHashMap<CallKey, Pending> = LruHashMap::with_max_entries(8192, 0);

/// Modules that were unloaded in traced processes: handles may mean other functions behind each.
#[unsafe(no_mangle)]
static mut EPOCH: u64 = 0;

/// Captures that are open in any process: while there are none, no launch looks for its stream's.
#[unsafe(no_mangle)]
static mut CAPTURING: u64 = 0;

/// How much is recorded of CUDA calls: `LEVEL_*` of the wire.
#[unsafe(no_mangle)]
static LEVEL: u32 = LEVEL_STEPS;

/// One launch of so many of a thread has a record, at `LEVEL_KERNELS`; at least 1.
#[unsafe(no_mangle)]
static SAMPLE: u32 = 1;

/// Capture caps in bytes, by [`tracer_ebpf::wire::net::cap_index`].
#[unsafe(no_mangle)]
static CAPS: [u32; CAPS_LEN] = [UNKNOWN_CAP; CAPS_LEN];

/// A ring that holds more than this many bytes wakes its reader. By the rings' indices.
#[unsafe(no_mangle)]
static WAKE_BYTES: [u64; RINGS] = [
    (BYTES[0] / WAKE_PART) as u64,
    (BYTES[1] / WAKE_PART) as u64,
    (BYTES[2] / WAKE_PART) as u64,
    (BYTES[3] / WAKE_PART) as u64,
];

/// Offsets in this kernel's structs, from its BTF, by `OFFSET_*` of the wire; 0 where it does not say.
#[unsafe(no_mangle)]
static OFFSETS: [u32; OFFSETS_LEN] = [0; OFFSETS_LEN];

pub fn cap(index: usize) -> u64 {
    let base = (&raw const CAPS).cast::<u32>();
    // SAFETY: the mask keeps the index inside the elements, of which there is a power of two.
    u64::from(unsafe { core::ptr::read_volatile(base.add(index & (CAPS_LEN - 1))) })
}

/// How many bytes in the ring `RING` wake its reader.
pub fn wake_bytes<const RING: u32>() -> u64 {
    const { assert!((RING as usize) < RINGS) };
    let base = (&raw const WAKE_BYTES).cast::<u64>();
    // SAFETY: inside the elements, as asserted. Volatile: the loader may have replaced the value, and a plain read would be folded.
    unsafe { core::ptr::read_volatile(base.add(RING as usize)) }
}

/// The offset of `FIELD`, an `OFFSET_*` of the wire.
pub fn offset<const FIELD: usize>() -> u64 {
    const { assert!(FIELD < OFFSETS_LEN) };
    let base = (&raw const OFFSETS).cast::<u32>();
    // SAFETY: inside the elements, as asserted.
    u64::from(unsafe { core::ptr::read_volatile(base.add(FIELD)) })
}

macro_rules! global {
    ($(#[$doc:meta])* $name:ident, $of:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> u32 {
            // SAFETY: a static. Volatile: the loader may have replaced the value, and a plain read would be folded.
            unsafe { core::ptr::read_volatile(&raw const $of) }
        }
    };
}

global!(level, LEVEL);
global!(sample, SAMPLE);

/// The epoch of handles.
#[inline(always)]
pub fn epoch() -> u32 {
    // SAFETY: a static. Volatile: another CPU may move it on.
    unsafe { core::ptr::read_volatile(&raw const EPOCH) as u32 }
}

/// Handles may mean other functions from now on.
#[inline(always)]
pub fn next_epoch() {
    add(&raw mut EPOCH, 1);
}

/// Whether a process captures anything.
#[inline(always)]
pub fn is_capturing() -> bool {
    // SAFETY: a static. Volatile: another CPU may change it.
    unsafe { core::ptr::read_volatile(&raw const CAPTURING) != 0 }
}

/// So many captures more are open; fewer where it wraps.
#[inline(always)]
pub fn captures_changed(by: u64) {
    add(&raw mut CAPTURING, by);
}

/// Adds to a counter that other CPUs add to at the same time.
#[inline(always)]
pub fn add(counter: *mut u64, count: u64) {
    // SAFETY: callers give a map's value or a static, aligned to 8 bytes. This machine has no compare-and-swap of its own, so
    // `AtomicU64` has no `fetch_add` here.
    unsafe { core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(counter, count) };
}
