//! Where inputs come from: the kernel's rings, or a file. The only rooms that make [`crate::input::Input`]s.

mod lives;
mod records;
pub mod ring;
pub mod session;
pub mod syscall_log;
