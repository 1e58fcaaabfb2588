//! What both sides know of the traced processes and of the size of the descriptor table.

/// Flag of a target: its descriptors are looked at. Without it only its life (fork, exec, exit) is followed.
pub const CAPTURE: u32 = 1;
/// Flag of a target: user space has looked at every descriptor it had open, and every call that makes one was seen since. A
/// descriptor without an entry is then none of a stream socket; without the flag nobody has said what it is.
pub const KNOWN: u32 = 2;

/// Flag of a target: files that it maps as executable are told of, since they may be libraries that are probed.
pub const LIBRARIES: u32 = 4;

/// Entries of the descriptor table: sockets of all traced processes, and what nobody could classify yet.
pub const DESCRIPTORS_MAX: u32 = 131_072;

/// Index into the `OFFSETS` global: `task_struct.pid`.
pub const OFFSET_TASK_PID: usize = 0;
/// Index into the `OFFSETS` global: `task_struct.tgid`.
pub const OFFSET_TASK_TGID: usize = 1;
/// Index into the `OFFSETS` global: `task_struct.files`.
pub const OFFSET_TASK_FILES: usize = 2;
/// Index into the `OFFSETS` global: `task_struct.signal`.
pub const OFFSET_TASK_SIGNAL: usize = 3;
/// Index into the `OFFSETS` global: `signal_struct.live`.
pub const OFFSET_SIGNAL_LIVE: usize = 4;
/// Index into the `OFFSETS` global: `files_struct.fdt`.
pub const OFFSET_FILES_FDT: usize = 5;
/// Index into the `OFFSETS` global: `fdtable.fd`.
pub const OFFSET_FDT_FD: usize = 6;
/// Index into the `OFFSETS` global: `fdtable.max_fds` (which may lie at 0).
pub const OFFSET_FDT_MAX: usize = 7;
/// Elements of the `OFFSETS` global.
pub const OFFSETS_LEN: usize = 8;
