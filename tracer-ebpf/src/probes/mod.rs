//! The programs, one file a family.

mod call;
mod cuda;
mod descriptors;
mod net;
mod pieces;
mod proc;
