//! What is left of CUDA when the pipeline does not take what the reader hands on: totals whole, once it takes again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use inferspan::attach::loader::Options;
use inferspan::attach::{Level, Target};
use inferspan::input::cuda::{FunctionKey, Seen};
use inferspan::input::{Event, Input, LossStage, Role, What};
use inferspan::source::session::Session;
use inferspan_tests::cuda::{Driver, Fixture, Runtime};
use inferspan_tests::live::{lost_at, may_trace};

/// Launches by thread and by function, as they were told last.
#[derive(Debug, Default)]
struct Told {
    threads: BTreeMap<u32, u64>,
    functions: BTreeMap<FunctionKey, u64>,
    lost: u64,
}

impl Told {
    fn take(&mut self, batch: &[Input]) {
        self.lost += lost_at(batch, LossStage::Queue);
        for input in batch {
            let Input::Event(Event { thread, what: What::Cuda(seen), .. }) = input else { continue };
            match &**seen {
                Seen::Burst(sums) => {
                    self.threads.insert(*thread, sums.launches);
                }
                Seen::Counts(counts) => self.functions.extend(counts.iter().copied()),
                _ => {}
            }
        }
    }
}

#[test]
fn totals_are_told_again_when_nobody_took_them() {
    // attached ─ (nobody takes anything: 30,000 launches fill the queue ─ 1,000 of the main thread, told in 1.3 s ─ 300,000 that crowd
    // these out) ─ quiet ─ (all is taken, for 3 s) ─ end
    //
    // The main thread and its kernel are told once: nothing of theirs moves after it.
    let test = "totals_are_told_again_when_nobody_took_them";
    let Some(fixture) = may_trace(test).then(|| Fixture::for_test(test)).flatten() else { return };
    let flood = |times| format!("threads 1 {{ repeat {times} {{ bench 10000 gemm; sleep 20000 }} }}");
    let script = format!("{}; bench 1000 silu; sleep 1300000; {}", flood(3), flood(30));
    let program = fixture.program(Driver::New, Runtime::V13).script(&script);
    let mut running = program.spawn().expect("start");
    let options = Options { level: Level::Kernels, ..Options::default() };
    let target = Target { tgid: running.pid(), capture: false, libraries: false };
    let mut session = Session::start(&options, &[target]).expect("attach");
    let attached = session.attach_libraries(&[(running.pid(), Role::Worker)], false);
    assert!(!attached.probed.is_empty(), "{:?}", attached.warnings);
    running.start().expect("it waits");
    running.reach_end().expect("the script");
    std::thread::sleep(Duration::from_millis(1500));
    let mut told = Told::default();
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        if let Ok(batch) = session.inputs().recv_timeout(Duration::from_millis(20)) {
            told.take(&batch);
        }
    }
    session.detach(|batch| told.take(&batch));
    let truth = running.finish().expect("its account");
    assert_eq!(truth.total.launch_count(), 331_000);
    assert!(told.lost > 10_000, "the queue was to overflow: {} events lost", told.lost);
    assert_eq!(told.threads.values().sum::<u64>(), 331_000, "{told:?}");
    assert_eq!(told.functions.values().sum::<u64>(), 331_000, "{told:?}");
}
