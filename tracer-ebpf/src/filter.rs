//! Who is traced, and what their descriptors are.

use tracer_ebpf::wire::net::{CLASS_IGNORED, CLASS_UNKNOWN};

use crate::maps::{DESCRIPTORS, TARGETS};

/// Flag of a target: its descriptors are looked at. Without it only its life (fork, exec, exit) is followed.
pub const CAPTURE: u32 = 1;

/// The flags of a traced thread group.
#[inline(always)]
pub fn target(tgid: u32) -> Option<u32> {
    // SAFETY: a u32 value; a torn or recycled read is a stale flag at worst.
    unsafe { TARGETS.get(tgid) }.copied()
}

#[inline(always)]
pub fn descriptor_key(tgid: u32, fd: u32) -> u64 {
    u64::from(tgid) << 32 | u64::from(fd)
}

/// The class of a descriptor; unknown when nobody has said.
#[inline(always)]
pub fn class_of(tgid: u32, fd: u32) -> u32 {
    // SAFETY: a u32 value; a torn or recycled read is a stale class at worst.
    unsafe { DESCRIPTORS.get(descriptor_key(tgid, fd)) }.copied().unwrap_or(CLASS_UNKNOWN)
}

/// A descriptor was created: its class replaces whatever an earlier lifetime left.
#[inline(always)]
pub fn set_class(tgid: u32, fd: u32, class: u32) {
    let key = descriptor_key(tgid, fd);
    // A full map leaves the descriptor unknown: it is captured within the small cap and classified by user space.
    let _ = if class == CLASS_UNKNOWN { DESCRIPTORS.remove(key) } else { DESCRIPTORS.insert(key, class, 0) };
}

/// A descriptor was created that is no socket.
#[inline(always)]
pub fn ignore(tgid: u32, fd: u32) {
    set_class(tgid, fd, CLASS_IGNORED);
}

/// A child has a copy of its parent's descriptors.
#[inline(always)]
pub fn inherit(parent: u32, child: u32, fd: u32) {
    let class = class_of(parent, fd);
    if class != CLASS_UNKNOWN {
        set_class(child, fd, class);
    }
}
