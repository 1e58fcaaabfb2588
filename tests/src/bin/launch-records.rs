//! How many launch records the collector takes a second on one core: from a ring's bytes to what is handed to the sinks.
//!
//! `launch-records RECORDS`: a process that launches 100 kernels in turn, at level `kernels`; one JSON object.

use std::mem::size_of;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use inferspan::core::Config;
use inferspan::decode::record::{self, Record};
use inferspan::input::{Fact, Input, Role, Server};
use inferspan::output::Output;
use inferspan::run::pipeline::Pipeline;
use tracer_ebpf::wire::cuda::{KIND_CUDA_LAUNCH, Launch};
use tracer_ebpf::wire::header::Header;

const PROCESS: u32 = 42;
const KERNELS: u64 = 100;

fn launch(number: u64) -> Launch {
    Launch {
        // Ten microseconds apart.
        header: Header {
            at: 1_000_000 + number * 10_000,
            process: PROCESS,
            thread: PROCESS,
            kind: KIND_CUDA_LAUNCH,
            pad: 0,
        },
        function: 0x1000 + number % KERNELS,
        stream: 7,
        epoch: 0,
        flags: 0,
        block: [128, 1, 1],
        grid: [number as u32 % 4 + 1, 1, 1],
        shared: 0,
        number: 1,
    }
}

fn main() -> Result<()> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(2_000_000), |word| word.parse()).context("RECORDS")?;
    let mut pipeline = Pipeline::new(1, 20_000_000, &Config::default());
    let server = Server { service: "training".into(), pid: PROCESS, ..Server::default() };
    pipeline.push(Some(0), Input::Fact(Fact::Server(Arc::new(server))));
    pipeline.push(Some(0), Input::Fact(Fact::Process { tgid: PROCESS, role: Role::Worker }));
    let started = Instant::now();
    let mut told = 0;
    for number in 0..count {
        let launch = launch(number);
        // SAFETY: a `repr(C)` struct without padding.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const launch).cast::<u8>(), size_of::<Launch>()) };
        let Record::Event(event) = record::decode(bytes)? else { bail!("a launch is no event") };
        pipeline.push(None, Input::Event(event));
        if number % 512 == 0 {
            told += pipeline.outputs().drain(..).filter(|output| matches!(output, Output::Cuda(_))).count() as u64;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    while pipeline.finish_part() {}
    told += pipeline.outputs().drain(..).filter(|output| matches!(output, Output::Cuda(_))).count() as u64;
    ensure!(told == count, "{told} of {count} launches came out");
    println!("{}", serde_json::json!({ "records": count, "a_second": (count as f64 / seconds).round() }));
    Ok(())
}
