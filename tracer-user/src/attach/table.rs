//! The kernel side's maps of targets and descriptors, from user space.
//!
//! Enters: processes to trace, what `/proc` and the core say of descriptors. Leaves: entries. Invariants: an entry that the
//! kernel side made is never overwritten, because it alone keeps the counters (what it should know is told beside it, for one
//! lifetime); a process is `KNOWN` only after all its open descriptors were looked at while the programs ran.

use std::collections::BTreeMap;

use aya::maps::{HashMap, MapData, MapError};
use tracer_ebpf::wire::map::{EXIST, NO_EXIST};
use tracer_ebpf::wire::net::{CLASS_IGNORED, CLASS_UNKNOWN, Descriptor, Told};
use tracer_ebpf::wire::target::{CAPTURE, KNOWN, LIBRARIES};

use super::Target;
use crate::decode::record::net::Class;
use crate::input::End;
use crate::proc::{Proc, descriptors};

/// [`Descriptor`] as a map's value.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Entry(Descriptor);

// SAFETY: `#[repr(C)]` of plain integers without padding.
unsafe impl aya::Pod for Entry {}

/// [`Told`] as a map's value.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Said(Told);

// SAFETY: `#[repr(C)]` of plain integers without padding.
unsafe impl aya::Pod for Said {}

/// The maps.
pub struct Table {
    targets: HashMap<MapData, u32, u32>,
    descriptors: HashMap<MapData, u64, Entry>,
    told: HashMap<MapData, u64, Said>,
    /// Sockets that found no room, and were not told yet.
    refused: u64,
    /// Processes that found no room, and were not told yet.
    unfollowed: u64,
}

impl Table {
    pub(super) fn new(
        targets: HashMap<MapData, u32, u32>,
        descriptors: HashMap<MapData, u64, Entry>,
        told: HashMap<MapData, u64, Said>,
    ) -> Self {
        Self { targets, descriptors, told, refused: 0, unfollowed: 0 }
    }

    /// Traces a process; without `capture` its life, and what it maps, are followed. What is known of it stays known. One that finds no
    /// room is counted, and not traced.
    pub fn add_target(&mut self, target: Target) -> Result<(), MapError> {
        let known = self.targets.get(&target.tgid, 0).unwrap_or_default() & KNOWN;
        let capture = if target.capture { CAPTURE } else { 0 };
        let libraries = if target.libraries { LIBRARIES } else { 0 };
        match self.targets.insert(target.tgid, known | capture | libraries, 0) {
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
                self.unfollowed += 1;
                Ok(())
            }
            done => done,
        }
    }

    /// Whether the process is traced (it was added, or is a child of one).
    pub fn is_target(&self, tgid: u32) -> bool {
        self.targets.get(&tgid, 0).is_ok()
    }

    /// Whether the process's sockets are looked at, and whether all are known.
    pub fn is_captured(&self, tgid: u32) -> (bool, bool) {
        let flags = self.targets.get(&tgid, 0).unwrap_or_default();
        (flags & CAPTURE != 0, flags & KNOWN != 0)
    }

    /// From here on, a descriptor of the process without an entry is ignored. Only after [`Self::look`].
    pub fn set_known(&mut self, tgid: u32) {
        if let Ok(flags) = self.targets.get(&tgid, 0) {
            // A process that is gone stays gone.
            let _ = self.targets.insert(tgid, flags | KNOWN, EXIST);
        }
    }

    /// Says what every descriptor is that the process has open; gives the lifetimes of the entries made, by descriptor.
    pub fn look(&mut self, tgid: u32, now: u64) -> BTreeMap<u32, u64> {
        let mut made = BTreeMap::new();
        for fd in Proc::this().descriptors(tgid).unwrap_or_default() {
            let Ok(class) = descriptors::class_of(tgid, fd) else { continue };
            let key = End::of_descriptor(tgid, fd);
            // What an earlier lifetime left.
            if let Some(of) = self.entry(key)
                && of.class == CLASS_IGNORED
                && class != Class::Ignored
            {
                self.remove(key, of.lifetime);
            }
            match self.entry(key) {
                Some(of) if of.class == CLASS_UNKNOWN => self.tell(key, of.lifetime, class),
                Some(_) => {}
                None if class == Class::Ignored => {}
                None => {
                    let entry =
                        Descriptor { class: class.to_wire(), state: 0, lifetime: now, moved_in: 0, moved_out: 0 };
                    // What the kernel side has learned since wins over what `/proc` said.
                    match self.descriptors.insert(key.0, Entry(entry), NO_EXIST) {
                        Ok(()) if descriptors::class_of(tgid, fd).is_ok() => {
                            made.insert(fd, now);
                        }
                        // Closed while it was looked at.
                        Ok(()) => self.remove(key, now),
                        // The kernel side was faster.
                        Err(_) if self.entry(key).is_some() => {}
                        Err(_) => self.refused += 1,
                    }
                }
            }
        }
        made
    }

    /// Takes back the entries of `made` whose descriptors are no stream sockets any more: what happened before the programs ran
    /// was told by nobody.
    pub fn correct(&mut self, tgid: u32, made: &BTreeMap<u32, u64>) {
        for (&fd, &lifetime) in made {
            if !is_stream_socket(tgid, fd) {
                self.remove(End::of_descriptor(tgid, fd), lifetime);
            }
        }
    }

    /// What is known of a descriptor.
    pub fn entry(&self, end: End) -> Option<Descriptor> {
        self.descriptors.get(&end.0, 0).ok().map(|entry| entry.0)
    }

    /// Says what a descriptor is, if it still has that lifetime at its next call.
    pub fn tell(&mut self, end: End, lifetime: u64, class: Class) {
        let told = Told { lifetime, class: class.to_wire(), pad: 0 };
        let _ = self.told.insert(end.0, Said(told), 0);
    }

    /// Removes an entry, if it still has that lifetime.
    pub fn remove(&mut self, end: End, lifetime: u64) {
        if self.entry(end).is_some_and(|entry| entry.lifetime == lifetime) {
            let _ = self.descriptors.remove(&end.0);
        }
    }

    /// Removes the entries that `is_gone` accepts; gives them.
    pub fn sweep(&mut self, is_gone: impl Fn(End, &Descriptor) -> bool) -> Vec<(End, Descriptor)> {
        let keys: Vec<u64> = self.descriptors.keys().filter_map(Result::ok).collect();
        let mut gone = Vec::new();
        for key in keys {
            if let Some(entry) = self.entry(End(key))
                && is_gone(End(key), &entry)
            {
                let _ = self.descriptors.remove(&key);
                gone.push((End(key), entry));
            }
        }
        gone
    }

    /// Sockets that this side found no room for since the last call.
    pub fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    /// Processes that this side found no room for since the last call.
    pub fn take_unfollowed(&mut self) -> u64 {
        std::mem::take(&mut self.unfollowed)
    }
}

/// Whether the number is a stream socket's now.
pub fn is_stream_socket(tgid: u32, fd: u32) -> bool {
    descriptors::class_of(tgid, fd).is_ok_and(|class| class != Class::Ignored)
}
