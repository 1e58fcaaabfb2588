//! What the programs of the check share.

pub mod truth;
