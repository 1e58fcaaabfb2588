//! The programs, one file a family.

mod call;
mod descriptors;
mod net;
mod pieces;
mod proc;
