//! What the store of a live view takes of memory, as the allocator has it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::BufWriter;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use inferspan::input::Event;
use inferspan::output::{AccessRecord, EngineStep, Service, Trace, TraceId};
use inferspan::source::syscall_log::SyscallLog;
use inferspan::store::{Limits, Store};
use inferspan_harness::folder::Folder;
use inferspan_tests::madeup::{Plan, write};
use inferspan_tests::pipeline::{self, Made};

/// What all that is allocated takes, with the allocator's own header.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

struct Counting;

/// What glibc keeps before each piece.
const HEADER: usize = 8;

// SAFETY: the system's allocator does the work; what is counted touches no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the same.
        let at = unsafe { System.alloc(layout) };
        // SAFETY: the allocator gave it.
        TAKEN.fetch_add(unsafe { libc::malloc_usable_size(at.cast()) } + HEADER, Relaxed);
        at
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the allocator gave it, and it is not freed yet.
        TAKEN.fetch_sub(unsafe { libc::malloc_usable_size(at.cast()) } + HEADER, Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(at, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that are freed with `thing`.
fn taken<T>(thing: T) -> usize {
    let before = TAKEN.load(Relaxed);
    drop(thing);
    before - TAKEN.load(Relaxed)
}

/// What a made-up server's log gives: `requests` of `tokens` each.
fn made(requests: usize, tokens: u32) -> Made {
    let plan = Plan {
        open: 16,
        requests,
        tokens,
        prompt: 50,
        stream: true,
        per_message: 0,
        waiting: 2,
        both_ends: false,
        http: true,
        blank: false,
    };
    let folder = Folder::scratch("store").unwrap();
    let file = folder.path().join("log.jsonl");
    write(&plan, BufWriter::new(std::fs::File::create(&file).unwrap())).unwrap();
    let mut log = SyscallLog::open(&file).unwrap();
    let events: Vec<Event> = std::iter::from_fn(|| log.next_event().unwrap()).collect();
    pipeline::run(&events)
}

fn requests(made: &mut Made) -> Vec<(Arc<AccessRecord>, Arc<Trace>)> {
    let traces = std::mem::take(&mut made.traces).into_iter().filter(|trace| trace.service == Service::Requests);
    let mut records = std::mem::take(&mut made.access);
    traces
        .map(|trace| {
            let root = (trace.spans[0].trace_id, trace.spans[0].span_id);
            let at = records.iter().position(|record| (record.trace_id, record.span_id) == root).unwrap();
            (Arc::new(records.swap_remove(at)), Arc::new(trace))
        })
        .collect()
}

/// The last minutes' numbers are beside what is kept: some KiB for each second, however much there is.
const BESIDE: usize = 64 << 10;

/// One test alone: others' allocations would be counted too.
#[test]
fn what_is_held_is_what_it_is_said_to_be_and_stays_within_its_bound() {
    let captured = pipeline::CAPTURES.map(|name| (name, pipeline::run(&pipeline::events(name))));
    for (what, mut made) in [("short", made(300, 8)), ("long", made(40, 400))].into_iter().chain(captured) {
        let all = Limits { bytes: usize::MAX / 8, ..Limits::default() };
        let (mut requests_alone, mut steps_alone) = (Store::new(all), Store::new(all));
        for step in std::mem::take(&mut made.steps) {
            steps_alone.step(Arc::new(step));
        }
        for (record, trace) in requests(&mut made) {
            requests_alone.record(record);
            requests_alone.trace(trace);
        }
        drop(made);
        for store in [requests_alone, steps_alone] {
            let (requests, steps, said) = (store.requests_count(), store.steps().count(), store.held_bytes());
            let is = taken(store);
            eprintln!("{what}: {requests} requests, {steps} steps: {said} bytes are said, {is} are taken");
            assert!(said.abs_diff(is) < is / 5 + BESIDE, "{what}: {said} are said, {is} are taken");
        }
    }
    stays_within_its_bound(made(200, 20));
}

/// 100,000 requests, one every 10 ms, each with its steps.
fn stays_within_its_bound(mut made: Made) {
    const BYTES: usize = 16 << 20;
    let steps = std::mem::take(&mut made.steps);
    let requests = requests(&mut made);
    let mut store = Store::new(Limits { bytes: BYTES, ..Limits::default() });
    let before = TAKEN.load(Relaxed);
    let mut most = 0;
    for number in 0..100_000_u64 {
        let (record, trace) = &requests[number as usize % requests.len()];
        let shift = number * 10_000_000;
        let id = TraceId((u128::from(number) << 64 | 1).to_be_bytes());
        let mut record =
            AccessRecord { trace_id: id, request_id: Some(format!("cmpl-{number}")), ..(**record).clone() };
        record.time.0 += shift;
        let mut trace = (**trace).clone();
        for span in &mut trace.spans {
            (span.trace_id, span.start_ns, span.end_ns) = (id, span.start_ns + shift, span.end_ns + shift);
        }
        store.record(Arc::new(record));
        store.trace(Arc::new(trace));
        let step = &steps[number as usize % steps.len()];
        let (start_ns, end_ns) = (step.start_ns + shift, step.end_ns + shift);
        store.step(Arc::new(EngineStep { trace_id: id, start_ns, end_ns, ..step.clone() }));
        most = most.max(TAKEN.load(Relaxed) - before);
    }
    eprintln!("100,000 requests: {} are kept, {most} bytes are taken at most", store.requests_count());
    assert_eq!(store.requests_count() as u64 + store.dropped().requests, 100_000);
    // Beside it, the numbers of 300 seconds.
    assert!(most < BYTES / 10 * 11 + (2 << 20), "{most} bytes");
    assert!(most > BYTES / 2, "the room is used: {most} bytes");
}
