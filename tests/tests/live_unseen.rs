//! A tracer that cannot keep up, live: no request whose records were lost is called an abort.

#![allow(clippy::unwrap_used, reason = "a test that meets a surprise fails")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use inferspan_harness::folder::Folder;
use inferspan_harness::process::Signal;
use inferspan_tests::attached::Attached;
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::live::may_trace;
use inferspan_tests::traffic::{Kind, Load, Until};

#[test]
fn rings_that_overflow_make_no_abort() {
    // streams that all end as usual ─ the tracer stands still meanwhile, so that the rings overflow ─ it goes on
    if !may_trace("rings_that_overflow_make_no_abort") {
        return;
    }
    let folder = Folder::new("live-unseen").unwrap();
    let engine = DemoEngine::start(Command::new(env!("CARGO_BIN_EXE_test-engine")), folder.path(), |_, announced| {
        Some(announced)
    });
    let engine = engine.unwrap();
    let (log, page) = (folder.path().join("access"), folder.path().join("page"));
    let arguments = ["--access-log", log.to_str().unwrap(), "--metrics-out", page.to_str().unwrap()];
    let attached = Attached::start("attach", engine.target.pid, &arguments.map(str::to_owned));
    let load = |seconds, seed| Load {
        url: engine.target.url.clone(),
        model: engine.target.model.clone(),
        kinds: vec![Kind::CompletionStream, Kind::Long],
        clients: 96,
        until: Until::Elapsed(Duration::from_secs(seconds)),
        seed,
    };
    load(2, 1).run().unwrap();
    let starved = load(24, 2);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| starved.run().unwrap());
        std::thread::sleep(Duration::from_secs(1));
        attached.signal(Signal::STOP);
        std::thread::sleep(Duration::from_secs(20));
        attached.signal(Signal::CONT);
        running.join().unwrap();
    });
    attached.signal(Signal::INT);
    let (code, said) = attached.end();
    assert_eq!(code, Some(0), "{said}");
    let page = fs::read_to_string(page).unwrap();
    let lost = |stage: &str| {
        let counts = page.lines().filter(|line| line.contains(&format!(r#"stage="{stage}""#)));
        counts.filter_map(|line| line.split(' ').nth(1)?.parse::<u64>().ok()).sum::<u64>()
    };
    let log = fs::read_to_string(log).unwrap();
    let of = |outcome: &str| log.lines().filter(|l| l.contains(&format!(r#""outcome":"{outcome}""#))).count();
    eprintln!("{} payloads and {} edges lost; {} lines", lost("data_ring"), lost("edge_ring"), log.lines().count());
    eprintln!("{} unknown, {} length, {} stop, {} abort", of("unknown"), of("length"), of("stop"), of("abort"));
    assert!(lost("data_ring") > 0, "{page}");
    assert!(of("unknown") > 0 && of("length") + of("stop") > 0, "{log}");
    assert_eq!(of("abort"), 0, "{said}");
}
