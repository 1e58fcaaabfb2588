//! Records that cross the ring buffers, one file a family.
