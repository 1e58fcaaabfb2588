//! (room under construction)

pub mod event;
