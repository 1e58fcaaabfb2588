//! Probes that are attached, and how they are taken back.
//!
//! Enters: what the kernel gave when it attached. Leaves: nothing of it. Invariant: whoever ends this process knows whether the kernel
//! would make it wait.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use aya::programs::uprobe::UProbeLink;

/// Probes that are attached, until it is dropped: then the kernel waits until nobody can be in them any more, some 100 ms.
#[derive(Debug)]
pub enum Link {
    /// One probe. These are taken back one after the other, whoever asks (measured: 65 take 7 s; its perf events share a mutex).
    Event(UProbeLink),
    /// So many probes of a program; see [`super::uprobes::Multi`].
    Multi(OwnedFd, usize),
}

impl Link {
    /// Whether the kernel takes its time to take it back.
    pub fn is_slow(&self) -> bool {
        matches!(self, Self::Event(_))
    }

    pub(super) fn probes(&self) -> usize {
        match self {
            Self::Event(_) => 1,
            Self::Multi(_, probes) => *probes,
        }
    }
}

/// Takes probes back: as many links at a time as there are, as each waits for the same.
pub fn take_back(links: Vec<Link>) {
    std::thread::scope(|scope| {
        for link in links {
            match link {
                Link::Event(_) => drop(link),
                // Without a thread it is dropped here.
                Link::Multi(..) => {
                    let _ = std::thread::Builder::new().spawn_scoped(scope, move || drop(link));
                }
            }
        }
    });
}

/// What is taken back while nobody waits for it.
#[derive(Debug, Default)]
pub(super) struct Leaving(Arc<AtomicUsize>);

impl Leaving {
    /// Takes probes back on a thread of its own; without a thread, here.
    pub(super) fn add(&self, links: Vec<Link>) {
        let slow = links.iter().filter(|link| link.is_slow()).count();
        let left = Arc::clone(&self.0);
        left.fetch_add(slow, SeqCst);
        let _ = std::thread::Builder::new().name("inferspan-detach".to_owned()).spawn(move || {
            take_back(links);
            left.fetch_sub(slow, SeqCst);
        });
    }

    /// Whether the kernel is still at it, and would make the end of this process wait.
    pub(super) fn is_slow(&self) -> bool {
        self.0.load(SeqCst) > 0
    }
}
