//! The programs, one file a family.

mod descriptors;
mod net;
mod pieces;
mod proc;
mod tokenizer;
