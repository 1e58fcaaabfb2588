//! Names of CUDA kernels: what a library registers, and from where it launches it.
//!
//! Enters: a library's file, a few bytes at a time. Leaves: a [`Table`], and of a device name what a person reads ([`name::Kernel`]). Pure.
//! Nothing of this needs a GPU, a driver or a process: the compiler writes calls into the library's code that tell the runtime which host
//! function stands for which kernel, and they are there in a stripped file as well (facts measured on torch, cuBLAS, cuDNN, NCCL).
//! Invariant: what is in the table was read from a call whose registers are certain; missing beats wrong. Refused: machines other than
//! x86-64.

pub mod calls;
pub mod class;
pub mod demangle;
pub mod name;
pub mod operand;
pub mod scan;
mod shape;
mod short;
pub mod table;

pub use class::Class;
pub use scan::{ScanError, scan};
pub use table::Table;
