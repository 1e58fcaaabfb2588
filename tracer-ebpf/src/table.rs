//! The table of descriptors: what each is, and how many bytes it has moved in its lifetime.
//!
//! Entries are made by the calls that make descriptors, and by user space for what it finds open. Of a target that is `KNOWN`
//! a missing entry means that the descriptor is ignored, so that files and workers take no room. What finds no room is counted.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};
use tracer_ebpf::wire::net::{
    CLASS_IGNORED, CLASS_UNKNOWN, Descriptor, KIND_BLOCKED, KIND_CLOSED, KIND_OPENED, KIND_PEER_CLOSED, KIND_UNBLOCKED,
    STATE_BLOCKED, Socket, is_open, may_be_client,
};
use tracer_ebpf::wire::ring;
use tracer_ebpf::wire::target::{KNOWN, OFFSET_FDT_FD, OFFSET_FDT_MAX, OFFSET_FILES_FDT, OFFSET_TASK_FILES};

use crate::{
    emit,
    maps::{self, DESCRIPTORS, TOLD},
};

/// The calling thread, and the flags of its process.
#[derive(Clone, Copy)]
pub struct Caller {
    pub pid_tgid: u64,
    pub flags: u32,
}

impl Caller {
    #[inline(always)]
    pub fn key(self, fd: u32) -> u64 {
        key((self.pid_tgid >> 32) as u32, fd)
    }
}

#[inline(always)]
pub fn key(tgid: u32, fd: u32) -> u64 {
    u64::from(tgid) << 32 | u64::from(fd)
}

/// A copy of an entry.
#[inline(always)]
fn entry(key: u64) -> Option<Descriptor> {
    // SAFETY: plain numbers; a torn or recycled read is a stale class or count at worst.
    unsafe { DESCRIPTORS.get(key) }.copied()
}

#[inline(always)]
fn insert(key: u64, class: u32, lifetime: u64) {
    let entry = Descriptor { class, state: 0, lifetime, moved_in: 0, moved_out: 0 };
    if DESCRIPTORS.insert(key, entry, 0).is_err() && class != CLASS_IGNORED {
        emit::count_drop(ring::DROPS_DESCRIPTORS);
    }
}

/// The class of a descriptor; unknown when nobody has said.
#[inline(always)]
pub fn class_of(caller: Caller, fd: u32) -> u32 {
    match entry(caller.key(fd)) {
        Some(entry) => entry.class,
        None if caller.flags & KNOWN != 0 => CLASS_IGNORED,
        None => CLASS_UNKNOWN,
    }
}

/// The entry of a descriptor that is used, made when nobody has said what it is, with what user space has said since. Nothing
/// for one that is ignored.
#[inline(always)]
pub fn used(caller: Caller, fd: u32) -> Option<*mut Descriptor> {
    let key = caller.key(fd);
    let found = match DESCRIPTORS.get_ptr_mut(key) {
        Some(found) => found,
        None if caller.flags & KNOWN != 0 => return None,
        None => {
            insert(key, CLASS_UNKNOWN, emit::now());
            DESCRIPTORS.get_ptr_mut(key)?
        }
    };
    // SAFETY: a live map value. Only this program writes it; another thread in a call on the same descriptor may do so at the
    // same time, and then the order of their bytes is not defined either.
    let entry = unsafe { &mut *found };
    if is_open(entry.class) {
        // SAFETY: plain numbers, compared before use.
        if let Some(told) = unsafe { TOLD.get(key) }
            && told.lifetime == entry.lifetime
        {
            entry.class = told.class;
            let _ = TOLD.remove(key);
            if entry.class == CLASS_IGNORED && caller.flags & KNOWN != 0 {
                let _ = DESCRIPTORS.remove(key);
                return None;
            }
        }
    }
    if entry.class == CLASS_IGNORED { None } else { Some(found) }
}

/// A descriptor was created: it replaces whatever an earlier lifetime left. That one was closed by a call of another thread
/// that has not returned yet, or by none (`dup2`).
#[inline(always)]
pub fn created(caller: Caller, fd: u32, class: u32, accepted: bool) {
    let key = caller.key(fd);
    let now = emit::now();
    let old = entry(key);
    if let Some(old) = old {
        tell(KIND_CLOSED, caller.pid_tgid, now, fd, &old);
    }
    if class != CLASS_IGNORED || caller.flags & KNOWN == 0 {
        insert(key, class, now);
    } else if old.is_some() {
        let _ = DESCRIPTORS.remove(key);
    }
    if accepted {
        let new = Descriptor { class, state: 0, lifetime: now, moved_in: 0, moved_out: 0 };
        tell(KIND_OPENED, caller.pid_tgid, now, fd, &new);
    }
}

/// `close` of a descriptor has returned. When its number is taken again, another thread's call has made something new of it,
/// and that call's exit tells of both, or has.
#[inline(always)]
pub fn closed(caller: Caller, fd: u32) {
    let key = caller.key(fd);
    let Some(old) = entry(key) else { return };
    if old.class == CLASS_IGNORED || is_occupied(fd) {
        return;
    }
    // Not removed: that could hit the entry of a call that took the number since the look. The next one replaces it.
    let Some(found) = DESCRIPTORS.get_ptr_mut(key) else { return };
    // What it moved since the look, too: this thread may have been held up while another took the number, used it and closed it.
    // SAFETY: a live map value.
    let last = unsafe { *found };
    if last.lifetime != old.lifetime || last.class == CLASS_IGNORED {
        return;
    }
    // SAFETY: as above.
    unsafe { (*found).class = CLASS_IGNORED };
    tell(KIND_CLOSED, caller.pid_tgid, emit::now(), fd, &last);
}

/// The stream has ended, or the connection was reset.
#[inline(always)]
pub fn peer_closed(caller: Caller, fd: u32) {
    if let Some(entry) = entry(caller.key(fd)) {
        tell(KIND_PEER_CLOSED, caller.pid_tgid, emit::now(), fd, &entry);
    }
}

/// A write was refused because the peer does not take what was written before.
#[inline(always)]
pub fn refused(caller: Caller, fd: u32) {
    if let Some(descriptor) = DESCRIPTORS.get_ptr_mut(caller.key(fd)) {
        wrote(caller.pid_tgid, fd, descriptor, false, emit::now());
    }
}

/// A write took all its bytes, or not. Only a change is told: however often a write is tried again, that is one record.
#[inline(always)]
pub fn wrote(pid_tgid: u64, fd: u32, descriptor: *mut Descriptor, whole: bool, at: u64) {
    // SAFETY: as in `used`.
    let entry = unsafe { &mut *descriptor };
    if !may_be_client(entry.class) || (entry.state & STATE_BLOCKED == 0) == whole {
        return;
    }
    entry.state = if whole { 0 } else { STATE_BLOCKED };
    tell(if whole { KIND_UNBLOCKED } else { KIND_BLOCKED }, pid_tgid, at, fd, entry);
}

/// What [`wrote`] does, of a descriptor that was looked up before.
#[inline(always)]
pub fn wrote_to(pid_tgid: u64, fd: u32, whole: bool, at: u64) {
    if let Some(descriptor) = DESCRIPTORS.get_ptr_mut(key((pid_tgid >> 32) as u32, fd)) {
        wrote(pid_tgid, fd, descriptor, whole, at);
    }
}

/// A child has a copy of its parent's descriptor; `entry` is a [`fresh`] one. Gives 1 when that found no room, to be counted
/// behind the loop: a branch in it doubles what the verifier has to look at.
#[inline(always)]
pub fn inherit(parent: u32, child: u32, fd: u32, entry: &mut Descriptor) -> u64 {
    // SAFETY: a live map value of plain numbers.
    let Some(of) = (unsafe { DESCRIPTORS.get(key(parent, fd)) }) else { return 0 };
    entry.class = of.class;
    u64::from(DESCRIPTORS.insert(key(child, fd), &*entry, 0).is_err())
}

/// A descriptor that nothing moved through yet. Made once before a loop: clearing it in each turn is a call (`memset`), across which
/// the verifier of Linux 6.1 prunes nothing, and gives up after a million instructions.
#[inline(always)]
pub fn fresh(now: u64) -> Descriptor {
    Descriptor { class: 0, state: 0, lifetime: now, moved_in: 0, moved_out: 0 }
}

#[inline(always)]
fn tell(kind: u32, pid_tgid: u64, at: u64, fd: u32, of: &Descriptor) {
    if of.class != CLASS_IGNORED {
        emit::edge(&Socket {
            header: emit::header(at, pid_tgid, kind),
            fd,
            class: of.class,
            lifetime: of.lifetime,
            moved_in: of.moved_in,
            moved_out: of.moved_out,
        });
    }
}

/// Whether the number stands for an open file of this process now. `false` where the kernel's BTF does not say how to look.
#[inline(always)]
fn is_occupied(fd: u32) -> bool {
    look_up(fd).is_some_and(|file| file != 0)
}

#[inline(always)]
fn look_up(fd: u32) -> Option<u64> {
    if maps::offset::<OFFSET_TASK_FILES>() == 0 {
        return None;
    }
    // SAFETY: no arguments, no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let files = word(task + maps::offset::<OFFSET_TASK_FILES>())?;
    let table = word(files + maps::offset::<OFFSET_FILES_FDT>())?;
    // SAFETY: the helper checks the address; the offset is that of this kernel's BTF.
    let max = unsafe { bpf_probe_read_kernel((table + maps::offset::<OFFSET_FDT_MAX>()) as *const u32) }.ok()?;
    if fd >= max {
        return None;
    }
    word(word(table + maps::offset::<OFFSET_FDT_FD>())? + u64::from(fd) * 8)
}

#[inline(always)]
fn word(address: u64) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address as *const u64) }.ok()
}
