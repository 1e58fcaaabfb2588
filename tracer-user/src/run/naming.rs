//! Names of launched functions: at once where the handle says it, else from the libraries of the process, in the background.
//!
//! Enters: functions as they are first launched. Leaves: a name each, sooner or later. The thread that feeds the run never waits for a
//! library to be read.

use std::sync::Arc;

use crate::input::cuda::{Api, Class, FunctionKey, KernelName, NamedBy, Seen};
use crate::kernel::name::Kernel;

/// A function's name.
pub(super) type Named = (FunctionKey, Arc<KernelName>);

#[derive(Debug, Default)]
pub(super) struct Naming {}

impl Naming {
    /// Something was seen: the name of a function that says it itself; others are looked for.
    pub(super) fn meet(&mut self, _process: u32, seen: &Seen) -> Option<Named> {
        let Seen::Function { key, text, .. } = seen else { return None };
        let text = text.as_deref().filter(|_| key.api != Api::Graph)?;
        Some((*key, named(text, NamedBy::Handle)))
    }

    /// Names that were found since the last call.
    pub(super) fn found(&mut self) -> Vec<Named> {
        Vec::new()
    }

    /// The rest of them; waits for a bounded time.
    pub(super) fn last(&mut self) -> Vec<Named> {
        Vec::new()
    }
}

fn named(name: &str, named_by: NamedBy) -> Arc<KernelName> {
    let Kernel { name, demangled, short, class } = Kernel::named(name);
    let class = Class::ALL.into_iter().find(|of| of.name() == class.name()).unwrap_or(Class::Other);
    Arc::new(KernelName { name, demangled, short, class, named_by })
}
