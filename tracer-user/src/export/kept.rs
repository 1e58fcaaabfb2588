//! Keeps what leaves the core lately, for whoever looks at the run: a [`Store`] behind a lock, and the thread that fills it.
//!
//! Enters: outputs, through a bounded queue; what finds no room there is dropped and counted. Leaves: the store, to readers. Invariant: the
//! core's thread never waits for a reader. Readers hold the lock for as long as it takes to clone what they want (it is all `Arc`s), and
//! make their answers without it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Pressure;
use super::queue::{self, Writer};
use super::sink::Sink;
use crate::output::{AccessRecord, EngineStep, Metric, Trace};
use crate::store::now::Now;
use crate::store::recently::Tokens;
use crate::store::{Limits, Store};

/// Spans, records and steps that wait to be kept at most: a second of a busy server.
const QUEUE: u64 = 65_536;

/// A store that is being filled; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Kept(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    store: Mutex<Store>,
    /// Somebody asked for what is open since it was looked at last.
    is_asked: AtomicBool,
    missed: AtomicU64,
    /// When what is open was looked at last.
    looked: Mutex<Option<Instant>>,
}

/// A picture of what is open is good for so long: whoever watches asks every second.
const FRESH: Duration = Duration::from_millis(1500);
/// One that is older shows requests that are long over.
const OLD: Duration = Duration::from_secs(5);

/// What comes to be kept.
#[derive(Debug)]
enum Item {
    Record(Arc<AccessRecord>),
    Trace(Arc<Trace>),
    Step(Arc<EngineStep>),
    Tokens(Tokens),
    Now(Arc<Now>, Instant),
}

impl Kept {
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Shared { store: Mutex::new(Store::new(limits)), ..Shared::default() }))
    }

    /// The store. For as short as possible: what comes meanwhile waits in the queue.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        // What it holds is whole between any two of its calls, so a panic elsewhere does not spoil it.
        self.0.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever reads [`Store::now`] asks for a newer one, which comes within half a second.
    pub fn ask_for_now(&self) {
        self.0.is_asked.store(true, Relaxed);
    }

    /// Whether [`Kept::now`] tells what is open just now; asks for that where it does not.
    pub fn is_fresh(&self) -> bool {
        let is_fresh = self.looked().is_some_and(|at| at.elapsed() < FRESH);
        if !is_fresh {
            self.ask_for_now();
        }
        is_fresh
    }

    /// What is open, as it was [`OLD`] ago at most; `None` where nobody looked since, so that it is not known. Asks for a newer picture.
    pub fn now(&self) -> Option<Arc<Now>> {
        self.ask_for_now();
        let is_good = self.looked().is_some_and(|at| at.elapsed() < OLD);
        is_good.then(|| Arc::clone(self.store().now()))
    }

    fn looked(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Outputs that found no room in the queue.
    pub fn missed(&self) -> u64 {
        self.0.missed.load(Relaxed)
    }

    /// What fills it.
    pub fn sink(&self, pressure: Pressure) -> std::io::Result<Box<dyn Sink>> {
        let (writer, reader) = queue::bounded(QUEUE);
        let kept = self.clone();
        let keep = move || {
            while let Some(item) = reader.pop() {
                let mut store = kept.store();
                match item {
                    Item::Record(record) => store.record(record),
                    Item::Trace(trace) => store.trace(trace),
                    Item::Step(step) => store.step(step),
                    Item::Tokens(tokens) => store.tokens(&tokens),
                    Item::Now(now, at) => {
                        let before = store.look(now);
                        drop(store);
                        *kept.looked() = Some(at);
                        drop(before);
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("inferspan-store".into()).spawn(keep)?;
        Ok(Box::new(Keeping { kept: self.clone(), writer, thread, pressure, tokens: Tokens::default() }))
    }
}

#[derive(Debug)]
struct Keeping {
    kept: Kept,
    writer: Writer<Item>,
    thread: JoinHandle<()>,
    pressure: Pressure,
    /// Tokens that were given since they were handed on: there are too many to hand each on.
    tokens: Tokens,
}

impl Keeping {
    /// Behind whatever says when they were given.
    fn hand_on_tokens(&mut self) {
        if self.tokens.count > 0 {
            let tokens = std::mem::take(&mut self.tokens);
            self.push(Item::Tokens(tokens), 1);
        }
    }

    fn push(&self, item: Item, weight: u64) {
        if self.writer.push(item, weight, self.pressure).is_err() {
            self.kept.0.missed.fetch_add(1, Relaxed);
        }
    }
}

impl Sink for Keeping {
    fn request(&mut self, trace: &Arc<Trace>) {
        self.push(Item::Trace(Arc::clone(trace)), trace.spans.len() as u64);
        self.hand_on_tokens();
    }

    fn step(&mut self, step: &EngineStep) {
        let launches = step.cuda.as_ref().map_or(0, |cuda| cuda.kernels.len());
        // Its launches are shared, and let go before it is, so that it weighs what they hold meanwhile.
        self.push(Item::Step(Arc::new(step.clone())), 1 + launches as u64);
        self.hand_on_tokens();
    }

    fn access(&mut self, record: &Arc<AccessRecord>) {
        self.push(Item::Record(Arc::clone(record)), 1);
    }

    fn metric(&mut self, metric: &Metric) {
        if let Metric::Tokens { tokens, inter_token, .. } = metric {
            self.tokens.count = self.tokens.count.saturating_add(*tokens);
            if let Some(seconds) = inter_token {
                self.tokens.gaps.add(*seconds);
            }
        }
    }

    fn wants_now(&self) -> bool {
        self.kept.0.is_asked.swap(false, Relaxed)
    }

    fn now(&mut self, now: &Arc<Now>) {
        let rows: usize = now.servers.iter().map(|server| server.open.len()).sum();
        self.push(Item::Now(Arc::clone(now), Instant::now()), 1 + rows as u64);
    }

    fn is_beside(&self) -> bool {
        true
    }

    fn finish(mut self: Box<Self>) -> Option<String> {
        self.hand_on_tokens();
        drop(self.writer);
        let is_whole = self.thread.join().is_ok();
        (!is_whole).then(|| "what was kept for viewers is not whole: its thread failed".to_owned())
    }
}
