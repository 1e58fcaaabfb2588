//! The CUDA of a step, when the engine is told of the fake libraries (`tests/fixtures/cuda`): what an engine that runs its model in its own
//! process calls, in small, on libraries that move no byte. Without them it calls nothing.
//!
//! Enters: the folder of the libraries, the steps. Leaves: calls of CUDA; a line of JSON for each step in the account, written when the step
//! is over: `end_ns` (unix), `launches` (by registered name), `graph_launches`, `copies` and `copy_bytes` (by kind), `waits`.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::scheduler::Step;

/// Where the libraries are, and where to write what was called.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    pub libraries: PathBuf,
    pub account: PathBuf,
}

const LAYERS: usize = 4;
/// What a layer launches, by alias.
const LAYER: [&str; 9] = [
    "late_norm",
    "late_gemm",
    "late_cache",
    "late_attention",
    "late_gemm",
    "late_norm",
    "late_gemm",
    "late_activation",
    "late_gemm",
];

const HOST_TO_DEVICE: c_int = 1;
const DEVICE_TO_HOST: c_int = 2;
const THREAD_LOCAL: c_int = 1;

type Handle = *mut c_void;

type Launch = unsafe extern "C" fn(*const c_char, *const [c_uint; 6], c_uint, Handle) -> c_int;
type Name = unsafe extern "C" fn(*const c_char) -> *const c_char;
type Copy = unsafe extern "C" fn(Handle, *const c_void, usize, c_int, Handle) -> c_int;
type Wait = unsafe extern "C" fn(Handle) -> c_int;
type LaunchGraph = unsafe extern "C" fn(Handle, Handle) -> c_int;
type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
type BeginCapture = unsafe extern "C" fn(Handle, c_int) -> c_int;
type EndCapture = unsafe extern "C" fn(Handle, *mut Handle) -> c_int;
type Instantiate = unsafe extern "C" fn(*mut Handle, Handle, c_ulonglong) -> c_int;

/// The functions that a step calls.
struct Functions {
    launch: Launch,
    name: Name,
    copy: Copy,
    wait: Wait,
    launch_graph: LaunchGraph,
}

pub(crate) struct Cuda {
    functions: Functions,
    stream: Handle,
    /// What a batch of decodes launches, captured.
    graph: Handle,
    account: File,
    open: Account,
}

/// What was called since the step began.
#[derive(Debug, Default, Serialize)]
struct Account {
    end_ns: u64,
    launches: BTreeMap<String, u64>,
    graph_launches: u64,
    copies: BTreeMap<&'static str, u64>,
    copy_bytes: BTreeMap<&'static str, u64>,
    waits: u64,
}

fn check(name: &str, error: c_int) -> anyhow::Result<()> {
    ensure!(error == 0, "{name}: error {error}");
    Ok(())
}

/// Loads a library for the rest of the process's life, so that the next finds it by its name.
fn load(folder: &Path, name: &str) -> anyhow::Result<Handle> {
    let path = CString::new(folder.join(name).into_os_string().into_encoded_bytes())?;
    // SAFETY: a NUL-terminated path; what its constructors do is the fixture's own.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    ensure!(!library.is_null(), "cannot load {}", path.to_string_lossy());
    Ok(library)
}

/// A function of a library.
fn find(library: Handle, name: &CStr) -> anyhow::Result<Handle> {
    // SAFETY: a library that stays loaded, and a NUL-terminated name.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    ensure!(!found.is_null(), "no {}", name.to_string_lossy());
    Ok(found)
}

/// A function of a library as what it is. A macro, because a function cannot be generic over the type of one.
macro_rules! function {
    ($library:expr, $name:literal, $of:ty) => {
        // SAFETY: the fixture's function of that name has this signature (runtime_api.h, kernels.h).
        unsafe { std::mem::transmute::<Handle, $of>(find($library, $name)?) }
    };
}

impl Cuda {
    /// Loads the libraries and captures the graph.
    pub(crate) fn start(config: &Config) -> anyhow::Result<Self> {
        let folder = &config.libraries;
        load(folder, "driver-new/libcuda.so.1")?;
        let runtime = load(folder, "runtime-12/libcudart.so.12")?;
        let kernels = load(folder, "common/libkernels-12.so")?;
        let functions = Functions {
            launch: function!(kernels, c"kernel_launch_named", Launch),
            name: function!(kernels, c"kernel_name", Name),
            copy: function!(runtime, c"cudaMemcpyAsync", Copy),
            wait: function!(runtime, c"cudaStreamSynchronize", Wait),
            launch_graph: function!(runtime, c"cudaGraphLaunch", LaunchGraph),
        };
        let create = function!(runtime, c"cudaStreamCreate", Create);
        let begin = function!(runtime, c"cudaStreamBeginCapture", BeginCapture);
        let end = function!(runtime, c"cudaStreamEndCapture", EndCapture);
        let instantiate = function!(runtime, c"cudaGraphInstantiate", Instantiate);
        let account = File::create(&config.account)
            .with_context(|| format!("cannot write the account {}", config.account.display()))?;
        let (stream, open) = (ptr::null_mut(), Account::default());
        let mut cuda = Self { functions, stream, graph: ptr::null_mut(), account, open };
        let mut graph = ptr::null_mut();
        // SAFETY: places for the results that live across the calls, and handles that these calls gave.
        unsafe {
            check("cudaStreamCreate", create(&raw mut cuda.stream))?;
            check("cudaStreamBeginCapture", begin(cuda.stream, THREAD_LOCAL))?;
            cuda.model(1)?;
            check("cudaStreamEndCapture", end(cuda.stream, &raw mut graph))?;
            check("cudaGraphInstantiate", instantiate(&raw mut cuda.graph, graph, 0))?;
        }
        // What was captured was not launched.
        cuda.open = Account::default();
        Ok(cuda)
    }

    /// Inputs to the device, and the model: a graph for decodes alone, kernels one by one where there are prompts.
    pub(crate) fn execute(&mut self, step: &Step) -> anyhow::Result<()> {
        let tokens: usize = step.iter().map(|(_, count)| count).sum();
        // Token ids, positions.
        self.copy("h2d", HOST_TO_DEVICE, 4 * tokens)?;
        self.copy("h2d", HOST_TO_DEVICE, 8 * tokens)?;
        if tokens > step.len() {
            return self.model(tokens);
        }
        // SAFETY: handles of this process.
        check("cudaGraphLaunch", unsafe { (self.functions.launch_graph)(self.graph, self.stream) })?;
        self.open.graph_launches += 1;
        Ok(())
    }

    /// Sampling, tokens back, the wait for them; then the step is in the account.
    pub(crate) fn sample(&mut self, step: &Step) -> anyhow::Result<()> {
        self.launch("late_sampling", step.len())?;
        self.copy("d2h", DEVICE_TO_HOST, 4 * step.len())?;
        // SAFETY: a handle of this process.
        check("cudaStreamSynchronize", unsafe { (self.functions.wait)(self.stream) })?;
        self.open.waits += 1;
        let mut account = std::mem::take(&mut self.open);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        account.end_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let line = serde_json::to_string(&account)? + "\n";
        self.account.write_all(line.as_bytes()).context("cannot write the account")
    }

    fn model(&mut self, tokens: usize) -> anyhow::Result<()> {
        self.launch("late_embedding", tokens)?;
        for _ in 0..LAYERS {
            for alias in LAYER {
                self.launch(alias, tokens)?;
            }
        }
        self.launch("late_norm", tokens)?;
        self.launch("late_gemm", tokens)
    }

    fn launch(&mut self, alias: &str, blocks: usize) -> anyhow::Result<()> {
        let shape = [u32::try_from(blocks)?, 1, 1, 128, 1, 1];
        let word = CString::new(alias)?;
        // SAFETY: a NUL-terminated alias and six numbers that live across the calls; a name that is never freed.
        let name = unsafe {
            check(alias, (self.functions.launch)(word.as_ptr(), &raw const shape, 0, self.stream))?;
            CStr::from_ptr((self.functions.name)(word.as_ptr()))
        };
        *self.open.launches.entry(name.to_string_lossy().into_owned()).or_default() += 1;
        Ok(())
    }

    fn copy(&mut self, kind: &'static str, number: c_int, bytes: usize) -> anyhow::Result<()> {
        // SAFETY: the fake moves no byte, so that no address is read.
        let error = unsafe { (self.functions.copy)(ptr::null_mut(), ptr::null(), bytes, number, self.stream) };
        check("cudaMemcpyAsync", error)?;
        *self.open.copies.entry(kind).or_default() += 1;
        *self.open.copy_bytes.entry(kind).or_default() += bytes as u64;
        Ok(())
    }
}
