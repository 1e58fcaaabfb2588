//! The programs, one file a family.

mod descriptors;
mod net;
mod proc;
mod tokenizer;
