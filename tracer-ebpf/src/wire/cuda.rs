//! Calls of the CUDA libraries: launches, and what surrounds them.
//!
//! What is only counted is counted in the kernel ([`Sums`], one a thread, never set back): a record that finds no room loses no count. At
//! [`LEVEL_KERNELS`] every call has a record of its own as well. Sums, functions and calls alike are of calls that were entered; whether
//! they succeeded is seen of those alone that return something.

use super::header::Header;

/// A burst of calls of a thread is over ([`Burst`]).
pub const KIND_CUDA_BURST: u32 = 96;
/// A function was launched for the first time in an epoch ([`Function`]).
pub const KIND_CUDA_FUNCTION: u32 = 97;
/// A launch ([`Launch`]).
pub const KIND_CUDA_LAUNCH: u32 = 98;
// 99 was a call with flags in the place of its capture.
/// A traced process mapped a file so that it can be executed ([`Mapped`]).
pub const KIND_MAPPED: u32 = 100;
/// Another call ([`Call`]).
pub const KIND_CUDA_CALL: u32 = 101;

/// `LEVEL` global: calls are counted; only calls that are rare, or inside a capture, have records of their own.
pub const LEVEL_STEPS: u32 = 1;
/// `LEVEL` global: every call has a record, or one of `SAMPLE` has.
pub const LEVEL_KERNELS: u32 = 2;

/// A burst ends where a thread calls nothing for so long, ns: what one engine step does is seldom further apart, two steps are.
pub const QUIET: u64 = 100_000;
/// A burst is cut when it is this long, ns, so that it can be told on which side of a step's edge its parts lie.
pub const BURST_MAX: u64 = 1_000_000;

/// Threads that call CUDA at a time, in all traced processes.
pub const THREADS_MAX: u32 = 4096;
/// Functions that are told apart, in all traced processes.
pub const FUNCTIONS_MAX: u32 = 65_536;
/// Processes that call CUDA at a time.
pub const PROCESSES_MAX: u32 = 1024;
/// Blocks of device memory that are held at a time, in all traced processes: caching allocators hold some hundreds each.
pub const BLOCKS_MAX: u32 = 131_072;
/// Captures that are open at a time, in all traced processes.
pub const CAPTURES_MAX: u32 = 1024;

/// Kinds of copies, `cudaMemcpyKind` (driver_types.h): host to host, host to device, device to host, device to device; then default
/// (the addresses say it), and between devices.
pub const COPY_DEFAULT: u32 = 4;
pub const COPY_PEER: u32 = 5;
pub const COPIES: usize = 6;

/// What a thread has called since it was first seen. Only that thread's programs write it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    /// When the burst began, and when it last called or came back from a wait, on the records' clock.
    pub first: u64,
    pub last: u64,
    pub launches: u64,
    pub graph_launches: u64,
    /// By kind.
    pub copies: [u64; COPIES],
    pub copy_bytes: [u64; COPIES],
    pub sets: u64,
    pub set_bytes: u64,
    pub waits: u64,
    /// Time inside waits, ns.
    pub wait_ns: u64,
    /// Launches that were recorded into a graph: no work of a GPU, and in no other sum.
    pub captured: u64,
}

const _: () = assert!(size_of::<Sums>() == 168);

/// What is kept of a thread.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Thread {
    pub sums: Sums,
    /// Captures that it has begun; see [`capture_number`].
    pub captures: u64,
}

const _: () = assert!(size_of::<Thread>() == 176);

/// Kinds of collectives, from [`NCCL_ALL_REDUCE`] on.
pub const COLLECTIVES: usize = 10;

/// What is kept of a process, never set back but `live` and `captures`. Told by no record: user space looks at it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Device memory that it holds of what was allocated since it is traced, bytes.
    pub live: u64,
    /// Captures that are open.
    pub captures: u64,
    /// Collectives outside of captures, and their bytes, by kind.
    pub collectives: [u64; COLLECTIVES],
    pub collective_bytes: [u64; COLLECTIVES],
}

const _: () = assert!(size_of::<Process>() == 176);

/// Key of the map of blocks: device memory that a process holds.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    pub process: u64,
    pub address: u64,
}

const _: () = assert!(size_of::<Block>() == 16);

/// Key of the map of open captures.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureKey {
    pub process: u64,
    /// The thread that began it (upper half), and which of its captures it is.
    pub mark: u64,
}

const _: () = assert!(size_of::<CaptureKey>() == 16);

/// The number of the capture with a mark: no other open one of its process has it, since Linux has at most 2^22 threads
/// (`PID_MAX_LIMIT`) and none has a thousand captures open. Never 0.
pub const fn capture_number(mark: u64) -> u32 {
    ((mark >> 32) as u32) << 10 | (mark as u32 & 0x3ff)
}

/// The header's thread had called nothing for [`QUIET`], or went on for [`BURST_MAX`]; `sums` are those before this call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Burst {
    pub header: Header,
    pub sums: Sums,
}

const _: () = assert!(size_of::<Burst>() == 192);

/// [`FunctionKey::api`]: a handle of the driver (`CUfunction` or `CUkernel`).
pub const API_DRIVER: u32 = 0;
/// [`FunctionKey::api`]: what the runtime is given: the address of the host's function, or a handle.
pub const API_RUNTIME: u32 = 1;

/// Key of the map of functions.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionKey {
    pub process: u32,
    /// Which handles are meant: it moves on when a module is unloaded, as its handles may be given out again.
    pub epoch: u32,
    pub function: u64,
    /// `API_*`.
    pub api: u32,
    pub pad: u32,
}

const _: () = assert!(size_of::<FunctionKey>() == 24);

/// Return addresses that are read at a function's first launch.
pub const CALLERS: usize = 4;
/// How far behind a handle the address of its name is, in the drivers that are known; another one is told by process.
pub const NAME_AT: u32 = 8;
/// Bytes of the name that a handle points to; a longer one is read by user space.
pub const NAME_MAX: usize = 1024;

/// A function that was not launched before in this epoch.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Function {
    pub header: Header,
    pub key: FunctionKey,
    /// Where the call returns to, then its callers by their frame pointers; 0 where one could not be read.
    pub callers: [u64; CALLERS],
    /// Bytes of `name`, without its end; 0 when nothing that looks like text could be read.
    pub name_len: u32,
    pub pad: u32,
    /// The text whose address lies where a handle keeps its name's.
    pub name: [u8; NAME_MAX],
}

const _: () = assert!(size_of::<Function>() == 24 + 24 + 32 + 8 + NAME_MAX);

/// [`Launch::flags`]: the stream is being captured: no work of a GPU, but a node of a graph.
pub const FLAG_CAPTURED: u32 = 1;
/// [`Launch::flags`]: the function is of [`API_RUNTIME`], else of [`API_DRIVER`].
pub const FLAG_RUNTIME: u32 = 2;

/// One launch. Each byte of it is paid for by each launch at [`LEVEL_KERNELS`], so nothing is in it twice.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    pub header: Header,
    /// With the header's process and the next two fields, a [`FunctionKey`].
    pub function: u64,
    pub stream: u64,
    pub epoch: u32,
    /// `FLAG_*`.
    pub flags: u16,
    /// Threads of a block: at most 1,024 in each direction. What no driver takes is cut to what fits.
    pub block: [u16; 3],
    pub grid: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// Of a captured one: the [`capture_number`]. Else the launches that it stands for, of which the others were left
    /// out by sampling.
    pub number: u32,
}

const _: () = assert!(size_of::<Launch>() == 72);

/// [`Call::call`], and the cookies of the probed points. The comments give the arguments in `a` and `b`.
pub const CUDA_COPY: u32 = 64; // kind, bytes
pub const CUDA_SET: u32 = 65; // -, bytes
pub const CUDA_WAIT_STREAM: u32 = 66;
pub const CUDA_WAIT_EVENT: u32 = 67; // event
pub const CUDA_WAIT_DEVICE: u32 = 68;
pub const CUDA_EVENT_RECORD: u32 = 69; // event
pub const CUDA_STREAM_WAIT: u32 = 70; // event
pub const CUDA_ALLOC: u32 = 71; // address, bytes; `stream`: what the process holds then, bytes
pub const CUDA_FREE: u32 = 72; // address, bytes (0: not known); `stream` as above
pub const CUDA_HOST_ALLOC: u32 = 73; // address, bytes
pub const CUDA_HOST_FREE: u32 = 74; // address
pub const CUDA_CAPTURE_BEGIN: u32 = 75; // capture's number, graph that it goes into (0: a new one)
pub const CUDA_CAPTURE_END: u32 = 76; // graph, capture's number and, in the upper half, nodes that were counted
pub const CUDA_INSTANTIATE: u32 = 77; // exec, graph
pub const CUDA_EXEC_DESTROY: u32 = 78; // exec
pub const CUDA_EXEC_UPDATE: u32 = 79; // exec, graph
pub const CUDA_GRAPH_LAUNCH: u32 = 80; // exec
pub const CUDA_UNLOAD: u32 = 81;
pub const CUDA_GRAPH_DESTROY: u32 = 82; // graph
/// Collectives; `a`: bytes of the buffer that is counted, `b`: the communicator.
pub const NCCL_ALL_REDUCE: u32 = 96;
pub const NCCL_ALL_GATHER: u32 = 97;
pub const NCCL_REDUCE_SCATTER: u32 = 98;
pub const NCCL_BROADCAST: u32 = 99;
pub const NCCL_REDUCE: u32 = 100;
pub const NCCL_SEND: u32 = 101;
pub const NCCL_RECV: u32 = 102;
pub const NCCL_ALL_TO_ALL: u32 = 103;
pub const NCCL_GATHER: u32 = 104;
pub const NCCL_SCATTER: u32 = 105;

const _: () = assert!((NCCL_SCATTER - NCCL_ALL_REDUCE) as usize + 1 == COLLECTIVES);

/// Flag of a cookie: the default stream (0) of the point is the calling thread's own (`_ptsz`, `_ptds`).
pub const PER_THREAD: u32 = 1 << 16;

/// Cookies of variants of a call whose arguments lie elsewhere; a record says the plain one.
pub const VARIANT: u32 = 1 << 8;
pub const CUDA_COPY_ASYNC: u32 = CUDA_COPY | VARIANT;
pub const CUDA_COPY_2D: u32 = CUDA_COPY | (2 * VARIANT);
pub const CUDA_COPY_2D_ASYNC: u32 = CUDA_COPY | (3 * VARIANT);
pub const CUDA_COPY_PEER: u32 = CUDA_COPY | (4 * VARIANT);
pub const CUDA_COPY_PEER_ASYNC: u32 = CUDA_COPY | (5 * VARIANT);
pub const CUDA_COPY_SYMBOL: u32 = CUDA_COPY | (6 * VARIANT);
pub const CUDA_COPY_SYMBOL_ASYNC: u32 = CUDA_COPY | (7 * VARIANT);
/// Those with arrays: to or from one, in rows, between two.
pub const CUDA_COPY_ARRAY: u32 = CUDA_COPY | (8 * VARIANT);
pub const CUDA_COPY_ARRAY_ASYNC: u32 = CUDA_COPY | (9 * VARIANT);
pub const CUDA_COPY_ARRAY_2D: u32 = CUDA_COPY | (10 * VARIANT);
pub const CUDA_COPY_ARRAY_2D_ASYNC: u32 = CUDA_COPY | (11 * VARIANT);
pub const CUDA_COPY_ARRAYS: u32 = CUDA_COPY | (12 * VARIANT);
pub const CUDA_COPY_ARRAYS_2D: u32 = CUDA_COPY | (13 * VARIANT);
pub const CUDA_COPY_3D: u32 = CUDA_COPY | (14 * VARIANT);
pub const CUDA_COPY_3D_ASYNC: u32 = CUDA_COPY | (15 * VARIANT);
pub const CUDA_COPY_3D_PEER: u32 = CUDA_COPY | (16 * VARIANT);
pub const CUDA_COPY_3D_PEER_ASYNC: u32 = CUDA_COPY | (17 * VARIANT);
/// Many copies in one call. Those of CUDA 12 have one more argument before the stream.
pub const CUDA_COPY_BATCH: u32 = CUDA_COPY | (18 * VARIANT);
pub const CUDA_COPY_BATCH_12: u32 = CUDA_COPY | (19 * VARIANT);
pub const CUDA_COPY_3D_BATCH: u32 = CUDA_COPY | (20 * VARIANT);
pub const CUDA_COPY_3D_BATCH_12: u32 = CUDA_COPY | (21 * VARIANT);
pub const CUDA_SET_ASYNC: u32 = CUDA_SET | VARIANT;
pub const CUDA_SET_2D: u32 = CUDA_SET | (2 * VARIANT);
pub const CUDA_SET_2D_ASYNC: u32 = CUDA_SET | (3 * VARIANT);
pub const CUDA_SET_3D: u32 = CUDA_SET | (4 * VARIANT);
pub const CUDA_SET_3D_ASYNC: u32 = CUDA_SET | (5 * VARIANT);
/// Rows that CUDA pads.
pub const CUDA_ALLOC_PITCH: u32 = CUDA_ALLOC | VARIANT;
pub const CUDA_ALLOC_3D: u32 = CUDA_ALLOC | (2 * VARIANT);
/// Memory that the host has already.
pub const CUDA_HOST_REGISTER: u32 = CUDA_HOST_ALLOC | VARIANT;
/// Into a graph that is there.
pub const CUDA_CAPTURE_BEGIN_INTO: u32 = CUDA_CAPTURE_BEGIN | VARIANT;
/// `ncclBcast`, which may go on to `ncclBroadcast`.
pub const NCCL_BCAST: u32 = NCCL_BROADCAST | VARIANT;

/// A call that is no launch of a kernel; of a timed one (waits, allocations, ends of captures, instantiations) when it returned.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub header: Header,
    /// When it was entered.
    pub entered: u64,
    pub call: u32,
    /// The [`capture_number`] where its stream is captured: no work, but a node of a graph; else 0.
    pub capture: u32,
    pub a: u64,
    pub b: u64,
    /// 0 where it names none.
    pub stream: u64,
    /// Where the call returns to.
    pub caller: u64,
}

const _: () = assert!(size_of::<Call>() == 72);

/// A file became executable memory of the header's process.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Mapped {
    pub header: Header,
}

const _: () = assert!(size_of::<Mapped>() == 24);
