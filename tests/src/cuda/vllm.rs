//! The real vLLM on CPU, whose worker drives the fake CUDA through a plug-in (`fixtures/cuda/vllm-plugin`).
//!
//! Enters: what is installed, the built fixture, what the worker shall do. Leaves: a server to attach to, and the worker's own account
//! of every step. The worker makes a step's launches and copies on its main thread, its waits too unless the engine schedules ahead.
//!
//! ```ignore
//! let (Some(installed), Some(fixture)) = (Vllm::from_env(), Fixture::for_test("…")) else { return };
//! let cuda = Cuda { fixture: &fixture, driver: Driver::New, mode: Mode::Full, ahead: false, late: None };
//! let server = vllm::start(&installed, &cuda, folder.path(), &Interrupt::never(), &["--max-num-seqs", "64"]).unwrap();
//! // attach to server.pid, send requests to server.url, detach
//! let account = vllm::read(folder.path()).unwrap();
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use inferspan_harness::installed::Vllm;
use inferspan_harness::server::Server;
use inferspan_harness::wait::Interrupt;
use serde::Deserialize;

use super::build::{Driver, Fixture, sources};
use super::truth::Amount;

/// Whether the worker launches graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every kernel by itself.
    Eager,
    /// A batch of up to 64 tokens is a graph for what lies between two attentions; attentions are launched.
    Piecewise,
    /// A batch of up to 64 decodes is one graph launch; others are eager.
    Full,
    /// The same, but of the others those of up to 64 tokens are piecewise: vLLM's default on a GPU.
    FullAndPiecewise,
}

/// What the worker drives. The runtime is always that of CUDA 12, since torch has NVIDIA's own libcudart.so.13 mapped.
#[derive(Debug, Clone, Copy)]
pub struct Cuda<'a> {
    pub fixture: &'a Fixture,
    pub driver: Driver,
    pub mode: Mode,
    /// Lets `--async-scheduling` count, which vLLM switches off on a CPU.
    pub ahead: bool,
    /// A rank that comes so much later to every collective.
    pub late: Option<(u32, Duration)>,
}

/// Starts vLLM with the plug-in. The account is in `folder`.
pub fn start(
    installed: &Vllm,
    cuda: &Cuda<'_>,
    folder: &Path,
    interrupt: &Interrupt,
    arguments: &[&str],
) -> Result<Server> {
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is not UTF-8");
    let (plugin, libraries) = (text(&sources().join("vllm-plugin"))?, text(cuda.fixture.folder())?);
    let (truth, burst) = (text(&folder.join(TRUTH))?, text(&folder.join(BURST))?);
    let driver = match cuda.driver {
        Driver::Old => "old",
        Driver::New => "new",
        Driver::None => "none",
    };
    let mode = match cuda.mode {
        Mode::Eager => "eager",
        Mode::Piecewise => "piecewise",
        Mode::Full => "full",
        Mode::FullAndPiecewise => "full_and_piecewise",
    };
    let mut environment = vec![
        ("PYTHONPATH", plugin.as_str()),
        // Nothing is written beside the sources.
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("INFERSPAN_FAKE_CUDA", libraries.as_str()),
        ("INFERSPAN_FAKE_CUDA_DRIVER", driver),
        ("INFERSPAN_FAKE_CUDA_MODE", mode),
        ("INFERSPAN_FAKE_CUDA_TRUTH", truth.as_str()),
        ("INFERSPAN_FAKE_CUDA_BURST", burst.as_str()),
        // Several workers find no NUMA node each to bind themselves to.
        ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        ("OMP_NUM_THREADS", "1"),
    ];
    if cuda.ahead {
        environment.push(("INFERSPAN_FAKE_CUDA_AHEAD", "1"));
        // A step keeps the GPU busy for longer than the CPU needs for the next one, as a real model does: 22 kernels are 3.3 ms.
        environment.push(("FAKE_CUDA_KERNEL_US", "150"));
    }
    let late = cuda.late.map(|(rank, by)| format!("{rank}:{}", by.as_micros()));
    environment.extend(late.as_deref().map(|late| ("INFERSPAN_FAKE_CUDA_LATE", late)));
    // Of another server in this folder.
    let _ = fs::remove_file(folder.join(TRUTH));
    Server::start_vllm(installed, folder, interrupt, arguments, &environment)
}

const TRUTH: &str = "cuda-truth.jsonl";
const BURST: &str = "cuda-burst";

/// Lets each step of the server with this folder launch so many kernels more, until it is told 0.
pub fn burst(folder: &Path, launches: u32) -> Result<()> {
    let path = folder.join(BURST);
    let done = if launches == 0 { fs::remove_file(&path) } else { fs::write(&path, launches.to_string()) };
    done.with_context(|| format!("cannot change {}", path.display()))
}

/// A line of the account.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Start(Worker),
    Graph(WorkerGraph),
    Memory { allocations: u64, bytes: u64 },
    Step(Box<WorkerStep>),
}

/// What all workers of a server did.
#[derive(Debug, Clone, Default)]
pub struct Account {
    pub workers: Vec<Worker>,
    /// Those that were captured in the warm-up.
    pub graphs: Vec<WorkerGraph>,
    /// Device memory that was allocated in the warm-up.
    pub memory: Amount,
    /// In the order of their ends.
    pub steps: Vec<WorkerStep>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Worker {
    pub pid: u32,
    pub rank: u32,
    pub layers: u32,
    /// The handle of its stream.
    pub stream: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct WorkerGraph {
    pub pid: u32,
    pub name: String,
    /// The handle of the executable graph.
    pub exec: u64,
    /// Registered names of its nodes, in order.
    pub kernels: Vec<String>,
}

/// One `execute_model` with tokens and its `sample_tokens`. Times are nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Deserialize)]
pub struct WorkerStep {
    pub pid: u32,
    pub thread: u32,
    pub rank: u32,
    pub number: u64,
    /// Before the model runs on the CPU; kernels are launched after that.
    pub start_ns: u64,
    /// Before the first call of CUDA.
    pub first_call_ns: u64,
    /// After the wait.
    pub end_ns: u64,
    /// `eager`, `piecewise`, `full`
    pub kind: String,
    /// Scheduled tokens by the engine's request id.
    pub requests: BTreeMap<String, u64>,
    /// By registered name.
    pub launches: BTreeMap<String, u64>,
    /// Of each launch but a burst's, in order: registered name, grid and block, shared memory.
    pub shapes: Vec<(String, [u32; 6], u32)>,
    /// Launches of graphs by their names.
    pub graphs: BTreeMap<String, u64>,
    pub graph_launches: u64,
    /// `h2d`, `d2h`
    pub copies: BTreeMap<String, Amount>,
    /// `stream`, `event`
    pub syncs: BTreeMap<String, u64>,
    pub sync_wait_ns: u64,
    /// Of each collective in order: kind as NCCL spells it, bytes, ns of `CLOCK_MONOTONIC` before the call.
    pub collectives: Vec<(String, u64, u64)>,
    /// Of each call in order: bytes of device memory allocated, or less than zero, freed.
    pub memory: Vec<i64>,
}

/// The account of the server that was started with this folder, so far.
pub fn read(folder: &Path) -> Result<Account> {
    let path = folder.join(TRUTH);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut account = Account::default();
    for line in text.lines() {
        match serde_json::from_str(line).with_context(|| format!("a line of {}: {line}", path.display()))? {
            Line::Start(worker) => account.workers.push(worker),
            Line::Graph(graph) => account.graphs.push(graph),
            Line::Memory { allocations, bytes } => {
                account.memory.count += allocations;
                account.memory.bytes += bytes;
            }
            Line::Step(step) => account.steps.push(*step),
        }
    }
    Ok(account)
}
