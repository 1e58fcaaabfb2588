//! Functions that a process launches: how often, under what name, in what shape.
//!
//! Enters: counts of the kernel side, launches one by one, names. Leaves: launches by class, each once; a row a kernel. A function whose
//! name does not come within [`PATIENCE`] counts as `other`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::input::EventNanos;
use crate::input::cuda::{Class, FunctionKey, KernelName, Launch, NamedBy};
use crate::output::cuda::{KernelRow, KernelShape};

/// As many as the kernel side tells apart.
const MAX_FUNCTIONS: usize = 65_536;
/// Shapes and streams of one function; more are not told apart.
const MAX_SHAPES: usize = 64;
/// How long a name may take: a library of a gigabyte is read within it.
pub(super) const PATIENCE: EventNanos = 10_000_000_000;

#[derive(Debug, Default)]
struct Function {
    met: EventNanos,
    launches: u64,
    /// Of them, in the metric already.
    told: u64,
    name: Option<Arc<KernelName>>,
    shapes: BTreeMap<KernelShape, u64>,
    streams: BTreeSet<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Functions {
    all: BTreeMap<FunctionKey, Function>,
    /// Kernels of epochs that are over, by name: a process that unloads modules for weeks has thousands of epochs.
    past: BTreeMap<String, (Arc<KernelName>, Sum)>,
    /// The newest epoch when functions were last counted: what was launched in an earlier one has been told whole since.
    newest: u32,
    /// Launches and names that found no room.
    refused: u64,
}

/// What is told of a kernel in the end.
#[derive(Debug, Clone, Default)]
struct Sum {
    launches: u64,
    shapes: BTreeMap<KernelShape, u64>,
    streams: BTreeSet<u64>,
}

impl Sum {
    fn add(&mut self, launches: u64, shapes: &BTreeMap<KernelShape, u64>, streams: &BTreeSet<u64>) {
        self.launches = self.launches.saturating_add(launches);
        for (shape, count) in shapes {
            let total = self.shapes.entry(*shape).or_default();
            *total = total.saturating_add(*count);
        }
        self.streams.extend(streams);
    }
}

impl Functions {
    fn get(&mut self, key: FunctionKey) -> Option<&mut Function> {
        if self.all.len() >= MAX_FUNCTIONS && !self.all.contains_key(&key) {
            self.refused += 1;
            return None;
        }
        Some(self.all.entry(key).or_default())
    }

    /// It was launched for the first time.
    pub(super) fn met(&mut self, key: FunctionKey, at: EventNanos) {
        if let Some(function) = self.get(key) {
            function.met = at;
        }
    }

    pub(super) fn named(&mut self, key: FunctionKey, name: &Arc<KernelName>) {
        if let Some(function) = self.get(key) {
            function.name = Some(Arc::clone(name));
        }
    }

    /// It was launched so often so far.
    pub(super) fn counted(&mut self, key: FunctionKey, launches: u64) {
        if let Some(function) = self.get(key) {
            function.launches = launches.max(function.launches);
        }
    }

    /// One launch, or one into a capture.
    pub(super) fn launched(&mut self, launch: &Launch) {
        let Some(function) = self.get(launch.key) else { return };
        let shape = KernelShape { grid: launch.grid, block: launch.block, shared: launch.shared };
        if function.shapes.len() < MAX_SHAPES || function.shapes.contains_key(&shape) {
            *function.shapes.entry(shape).or_default() += u64::from(launch.weight);
        }
        if function.streams.len() < MAX_SHAPES {
            function.streams.insert(launch.stream);
        }
    }

    /// Functions of a process were counted: what belongs to epochs that were over the last time, and is told and named, is kept by its
    /// name alone from now on.
    pub(super) fn counted_all(&mut self, newest: u32) {
        let before = self.newest;
        self.newest = newest.max(before);
        let is_over = |key: &FunctionKey, function: &mut Function| {
            key.epoch < before && function.told == function.launches && function.name.is_some()
        };
        for (_, function) in self.all.extract_if(.., is_over) {
            let Some(name) = function.name.filter(|_| function.launches > 0) else { continue };
            if self.past.len() >= MAX_FUNCTIONS && !self.past.contains_key(&name.name) {
                self.refused += 1;
                continue;
            }
            let (_, sum) = self.past.entry(name.name.clone()).or_insert_with(|| (name, Sum::default()));
            sum.add(function.launches, &function.shapes, &function.streams);
        }
    }

    /// What found no room since the last call.
    pub(super) fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    /// What a function is called; a number where nothing says it.
    pub(super) fn name(&self, key: FunctionKey) -> Arc<KernelName> {
        let known = self.all.get(&key).and_then(|function| function.name.clone());
        known.unwrap_or_else(|| nameless(key))
    }

    /// Launches since the last call, by class. `is_last`: names that have not come will not.
    pub(super) fn take_counted(&mut self, now: EventNanos, is_last: bool) -> BTreeMap<Class, u64> {
        let mut by_class = BTreeMap::new();
        for function in self.all.values_mut() {
            let new = function.launches.saturating_sub(function.told);
            if new == 0 {
                continue;
            }
            let class = match &function.name {
                Some(name) => name.class,
                None if is_last || now.saturating_sub(function.met) > PATIENCE => Class::Other,
                None => continue,
            };
            function.told = function.launches;
            let total: &mut u64 = by_class.entry(class).or_default();
            *total = total.saturating_add(new);
        }
        by_class
    }

    pub(super) fn are_all_named(&self) -> bool {
        self.all.values().all(|function| function.name.is_some())
    }

    /// A row for each name, in the order of names.
    pub(super) fn rows(&self) -> impl Iterator<Item = KernelRow> {
        let mut rows = self.past.clone();
        for (key, function) in self.all.iter().filter(|(_, function)| function.launches > 0) {
            let name = self.name(*key);
            let (_, sum) = rows.entry(name.name.clone()).or_insert_with(|| (name, Sum::default()));
            sum.add(function.launches, &function.shapes, &function.streams);
        }
        rows.into_values().map(|(name, sum)| {
            let shape = sum.shapes.iter().max_by_key(|(_, count)| **count).map(|(shape, _)| *shape);
            let streams = (!sum.streams.is_empty()).then_some(sum.streams.len() as u64);
            KernelRow { server: Arc::default(), process: 0, name, launches: sum.launches, shape, streams }
        })
    }
}

pub(super) fn nameless(key: FunctionKey) -> Arc<KernelName> {
    let name = format!("unknown:{:#x}", key.function);
    let (demangled, short) = (name.clone(), name.clone());
    Arc::new(KernelName { name, demangled, short, class: Class::Other, named_by: NamedBy::Caller })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::cuda::Api;

    const KEY: FunctionKey = FunctionKey { process: 1, epoch: 0, function: 0x10, api: Api::Driver };

    fn name(text: &str, class: Class) -> Arc<KernelName> {
        let text = text.to_owned();
        let (demangled, short) = (text.clone(), text.clone());
        Arc::new(KernelName { name: text, demangled, short, class, named_by: NamedBy::Handle })
    }

    fn launch(grid: u32, weight: u32) -> Launch {
        let (grid, block) = ([grid, 1, 1], [32, 1, 1]);
        Launch { key: KEY, stream: 7, grid, block, shared: 0, capture: None, weight }
    }

    #[test]
    fn launches_wait_for_their_name_and_count_once() {
        // met · counted 3 · named · counted 5
        let mut functions = Functions::default();
        functions.met(KEY, 0);
        functions.counted(KEY, 3);
        assert_eq!(functions.take_counted(1, false), BTreeMap::new());
        functions.named(KEY, &name("gemm", Class::Gemm));
        assert_eq!(functions.take_counted(1, false), BTreeMap::from([(Class::Gemm, 3)]));
        functions.counted(KEY, 5);
        assert_eq!(functions.take_counted(1, false), BTreeMap::from([(Class::Gemm, 2)]));
        assert_eq!(functions.take_counted(1, true), BTreeMap::new());
    }

    #[test]
    fn a_name_that_does_not_come_is_other() {
        let mut functions = Functions::default();
        functions.met(KEY, 0);
        functions.counted(KEY, 3);
        assert_eq!(functions.take_counted(PATIENCE + 1, false), BTreeMap::from([(Class::Other, 3)]));
        let row = functions.rows().next().expect("a row");
        assert_eq!((row.name.name.as_str(), row.launches, row.shape), ("unknown:0x10", 3, None));
    }

    #[test]
    fn epochs_that_are_over_take_no_room_and_lose_no_launch() {
        // 100,000 times: launched twice ─ unloaded
        let mut functions = Functions::default();
        for epoch in 0..100_000 {
            let key = FunctionKey { epoch, ..KEY };
            functions.met(key, 0);
            functions.named(key, &name("gemm", Class::Gemm));
            functions.counted(key, 2);
            functions.take_counted(0, false);
            functions.counted_all(epoch);
        }
        assert!(functions.all.len() <= 3, "{}", functions.all.len());
        assert_eq!(functions.take_refused(), 0);
        let rows: Vec<u64> = functions.rows().map(|row| row.launches).collect();
        assert_eq!(rows, [200_000]);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let mut functions = Functions::default();
        for function in 0..MAX_FUNCTIONS as u64 + 5 {
            functions.counted(FunctionKey { function, ..KEY }, 1);
        }
        assert_eq!(functions.take_refused(), 5);
    }

    #[test]
    fn handles_of_one_kernel_are_one_row_with_its_most_frequent_shape() {
        // the same kernel behind two handles: one was unloaded in between
        let later = FunctionKey { epoch: 1, function: 0x20, ..KEY };
        let mut functions = Functions::default();
        for key in [KEY, later] {
            functions.named(key, &name("gemm", Class::Gemm));
            functions.counted(key, 2);
        }
        functions.launched(&launch(4, 1));
        functions.launched(&launch(8, 3));
        let rows: Vec<KernelRow> = functions.rows().collect();
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((row.launches, row.streams), (4, Some(1)));
        assert_eq!(row.shape.map(|shape| shape.grid), Some([8, 1, 1]));
    }
}
