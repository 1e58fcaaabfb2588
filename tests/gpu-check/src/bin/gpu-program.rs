//! A CUDA program that counts what it does: the driver's API through cudarc, copies and waits through a libcudart if one is named.
//!
//! Enters: `rounds N [LIBCUDART]`, `bench N` or `device`. Leaves: `ready` (it waits for a line), `done` (again), and its account as a
//! line of JSON (`Truth`); of `device` the devices' names. Kernels come from PTX text, so that any driver compiles them for its device.
//! Refused: a host without `libcuda.so.1` or a device, by an error that says so.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use cudarc::driver::result::{self, stream::StreamKind};
use cudarc::driver::sys;
use inferspan_gpu_check::truth::{Amount, Truth};

/// Elements of each vector.
const COUNT: u32 = 1 << 16;
const BYTES: usize = COUNT as usize * 4;
const GRID: (u32, u32, u32) = (COUNT / 256, 1, 1);
const BLOCK: (u32, u32, u32) = (256, 1, 1);
/// Launches between two waits of the benchmark: a driver's queue holds about a thousand, and a full one makes the launch wait.
const BATCH: u32 = 256;
const PTX: &str = concat!(include_str!("../kernels.ptx"), "\0");

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // SAFETY: it only looks for a library.
    ensure!(unsafe { sys::is_culib_present() }, "no libcuda.so.1: the NVIDIA driver is not installed");
    result::init().context("cuInit")?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["device"] => {
            let count = result::device::get_count().context("cuDeviceGetCount")?;
            ensure!(count > 0, "no CUDA device");
            let names: Result<Vec<String>, _> =
                (0..count).map(|at| result::device::get_name(result::device::get(at)?)).collect();
            println!("{}", serde_json::to_string(&names.context("cuDeviceGetName")?)?);
            Ok(())
        }
        ["rounds", rounds] => rounds_of(rounds.parse()?, None),
        ["rounds", rounds, library] => rounds_of(rounds.parse()?, Some(library)),
        ["bench", launches] => bench(launches.parse()?),
        _ => bail!("rounds N [LIBCUDART] | bench N | device"),
    }
}

/// Says a word and waits for a line.
fn stop(word: &str) -> Result<()> {
    println!("{word}");
    std::io::stdout().flush()?;
    ensure!(std::io::stdin().read_line(&mut String::new())? > 0, "stdin is closed");
    Ok(())
}

/// The loaded module and what it works on, in the device's primary context.
struct Device {
    functions: [sys::CUfunction; 3],
    streams: [sys::CUstream; 2],
    x: sys::CUdeviceptr,
    y: sys::CUdeviceptr,
    launches: BTreeMap<String, u64>,
}

/// In the order of [`Device::functions`].
const KERNELS: [&CStr; 3] = [c"fill", c"scale", c"saxpy"];
const FILL: usize = 0;
const SCALE: usize = 1;
const SAXPY: usize = 2;

#[derive(Clone, Copy)]
enum How {
    Plain,
    Extended,
    Cooperative,
}

impl Device {
    fn open() -> Result<Self> {
        let device = result::device::get(0).context("no CUDA device")?;
        // SAFETY: the context is the device's own and is never released; PTX ends in NUL; the module is never unloaded.
        unsafe {
            result::ctx::set_current(result::primary_ctx::retain(device)?)?;
            let module = result::module::load_data(PTX.as_ptr().cast()).context("the PTX does not load")?;
            let function = |name: &CStr| result::module::get_function(module, CString::from(name));
            Ok(Self {
                functions: [function(KERNELS[FILL])?, function(KERNELS[SCALE])?, function(KERNELS[SAXPY])?],
                streams: [
                    result::stream::create(StreamKind::NonBlocking)?,
                    result::stream::create(StreamKind::NonBlocking)?,
                ],
                x: result::malloc_sync(BYTES)?,
                y: result::malloc_sync(BYTES)?,
                launches: BTreeMap::new(),
            })
        }
    }

    /// One launch: of `fill` and `scale` on y with `factor`, of `saxpy` from x to y.
    fn enqueue(&self, kernel: usize, how: How, stream: usize, mut factor: f32) -> Result<()> {
        let (mut x, mut y, mut count) = (self.x, self.y, COUNT);
        let y = (&raw mut y).cast::<c_void>();
        let factor = (&raw mut factor).cast();
        let count = (&raw mut count).cast();
        let mut of_saxpy = [y, (&raw mut x).cast(), factor, count];
        let mut of_one = [y, factor, count];
        let parameters: &mut [*mut c_void] = if kernel == SAXPY { &mut of_saxpy } else { &mut of_one };
        let (function, stream) = (self.functions[kernel], self.streams[stream]);
        // SAFETY: the parameters are those of the PTX, and are copied by the call.
        unsafe {
            match how {
                How::Plain => result::launch_kernel(function, GRID, BLOCK, 0, stream, parameters)?,
                How::Cooperative => {
                    result::launch_cooperative_kernel(function, (1, 1, 1), BLOCK, 0, stream, parameters)?;
                }
                How::Extended => {
                    let config = sys::CUlaunchConfig {
                        gridDimX: GRID.0,
                        gridDimY: GRID.1,
                        gridDimZ: GRID.2,
                        blockDimX: BLOCK.0,
                        blockDimY: BLOCK.1,
                        blockDimZ: BLOCK.2,
                        sharedMemBytes: 0,
                        hStream: stream,
                        attrs: std::ptr::null_mut(),
                        numAttrs: 0,
                    };
                    sys::cuLaunchKernelEx(&raw const config, function, parameters.as_mut_ptr(), std::ptr::null_mut())
                        .result()?;
                }
            }
        }
        Ok(())
    }

    fn launch(&mut self, kernel: usize, how: How, stream: usize, factor: f32) -> Result<()> {
        self.enqueue(kernel, how, stream, factor)?;
        *self.launches.entry(KERNELS[kernel].to_string_lossy().into_owned()).or_default() += 1;
        Ok(())
    }

    /// `fill`, `scale`, `saxpy` as a graph, captured through the runtime where there is one, as PyTorch does.
    fn capture(&self, runtime: Option<&Runtime>) -> Result<sys::CUgraphExec> {
        let stream = self.streams[0];
        // SAFETY: the stream is its own; the graph is destroyed once. A stream and a graph are the same in both APIs.
        unsafe {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            match runtime {
                Some(runtime) => {
                    let error = (runtime.begin_capture)(stream.cast(), mode as c_int);
                    ensure!(error == 0, "cudaStreamBeginCapture: error {error}");
                }
                None => result::stream::begin_capture(stream, mode)?,
            }
            self.enqueue(FILL, How::Plain, 0, 2.0)?;
            self.enqueue(SCALE, How::Extended, 0, 3.0)?;
            self.enqueue(SAXPY, How::Plain, 0, 0.5)?;
            let graph: sys::CUgraph = match runtime {
                Some(runtime) => {
                    let mut graph = std::ptr::null_mut();
                    let error = (runtime.end_capture)(stream.cast(), &raw mut graph);
                    ensure!(error == 0, "cudaStreamEndCapture: error {error}");
                    graph.cast()
                }
                None => result::stream::end_capture(stream)?,
            };
            let mut exec = std::ptr::null_mut();
            sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0).result()?;
            result::graph::destroy(graph)?;
            Ok(exec)
        }
    }

    fn wait(&self) -> Result<()> {
        for stream in self.streams {
            // SAFETY: its own stream.
            unsafe { result::stream::synchronize(stream) }?;
        }
        Ok(())
    }
}

/// Launches in each way, a graph, copies and waits; then whether the device computed what it should.
fn rounds_of(rounds: u32, library: Option<&str>) -> Result<()> {
    let mut device = Device::open()?;
    let runtime = library.map(Runtime::open).transpose()?;
    let mut told = Told::default();
    stop("ready")?;
    let exec = device.capture(runtime.as_ref())?;
    let mut host = vec![1.0f32; COUNT as usize];
    // SAFETY: the vector has the bytes of `x`.
    unsafe { result::memcpy_htod_sync(device.x, &host) }?;
    for _ in 0..rounds {
        device.launch(FILL, How::Plain, 1, 7.0)?;
        device.launch(SCALE, How::Extended, 1, 2.0)?;
        device.launch(SCALE, How::Cooperative, 1, 1.0)?;
        device.launch(SAXPY, How::Plain, 1, 1.0)?;
        device.wait()?;
        // SAFETY: the graph and the stream are its own.
        unsafe { result::graph::launch(exec, device.streams[0]) }?;
        if let Some(runtime) = &runtime {
            runtime.round(&device, &mut host, &mut told)?;
        }
        device.wait()?;
    }
    // SAFETY: the vector has the bytes of `y`; nothing runs any more.
    unsafe {
        result::memcpy_dtoh_sync(&mut host, device.y)?;
        result::graph::exec_destroy(exec)?;
    }
    stop("done")?;
    let mut notes = vec![
        "its own copies of set-up, and cuStreamSynchronize, are calls of the driver's API, which are not probed"
            .to_owned(),
    ];
    if runtime.is_none() {
        notes.push("without a libcudart: copies and waits are not compared".to_owned());
        notes.push(
            "3 launches are nodes of a capture of the driver's API: who counts them does not see such captures"
                .to_owned(),
        );
    }
    let truth = Truth {
        launches: device.launches,
        graph_launches: u64::from(rounds),
        copies: runtime.is_some().then_some(told.copies),
        waits: runtime.is_some().then_some(told.waits),
        wait_ns: runtime.is_some().then_some(told.wait_ns),
        // The graph comes last: 2 * 3 + 0.5 * 1.
        is_result_right: Some(host.iter().all(|value| (value - 6.5).abs() < f32::EPSILON)),
        notes,
        ..Truth::default()
    };
    println!("{}", serde_json::to_string(&truth)?);
    Ok(())
}

fn bench(launches: u32) -> Result<()> {
    let mut device = Device::open()?;
    for _ in 0..2 * BATCH {
        device.enqueue(FILL, How::Plain, 0, 1.0)?;
    }
    device.wait()?;
    stop("ready")?;
    let (mut spent, batches) = (0, launches.div_ceil(BATCH));
    for _ in 0..batches {
        let start = Instant::now();
        for _ in 0..BATCH {
            device.enqueue(FILL, How::Plain, 0, 1.0)?;
        }
        spent += start.elapsed().as_nanos();
        device.wait()?;
    }
    stop("done")?;
    let count = u64::from(batches) * u64::from(BATCH);
    device.launches.insert("fill".to_owned(), count);
    let truth =
        Truth { launches: device.launches, ns_per_launch: Some(spent as f64 / count as f64), ..Truth::default() };
    println!("{}", serde_json::to_string(&truth)?);
    Ok(())
}

#[derive(Default)]
struct Told {
    copies: BTreeMap<String, Amount>,
    waits: u64,
    wait_ns: u64,
}

type Copy = unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_int, *mut c_void) -> c_int;
type OfStream = unsafe extern "C" fn(*mut c_void) -> c_int;
type Plain = unsafe extern "C" fn() -> c_int;
type BeginCapture = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
type EndCapture = unsafe extern "C" fn(*mut c_void, *mut *mut c_void) -> c_int;

/// The calls of a libcudart that are traced.
struct Runtime {
    copy: Copy,
    wait_stream: OfStream,
    wait_device: Plain,
    begin_capture: BeginCapture,
    end_capture: EndCapture,
}

/// `cudaMemcpyKind`
const KINDS: [(c_int, &str); 3] = [(1, "h2d"), (3, "d2d"), (2, "d2h")];

impl Runtime {
    fn open(path: &str) -> Result<Self> {
        let name = CString::new(path)?;
        // SAFETY: the library's initialisers run, as in any program that uses it; the functions have these types in every CUDA.
        unsafe {
            let library = libc::dlopen(name.as_ptr(), libc::RTLD_NOW);
            ensure!(!library.is_null(), "{path} cannot be loaded");
            let find = |name: &CStr| {
                let function = libc::dlsym(library, name.as_ptr());
                ensure!(!function.is_null(), "{path} has no {}", name.to_string_lossy());
                Ok(function)
            };
            Ok(Self {
                copy: std::mem::transmute::<*mut c_void, Copy>(find(c"cudaMemcpyAsync")?),
                wait_stream: std::mem::transmute::<*mut c_void, OfStream>(find(c"cudaStreamSynchronize")?),
                wait_device: std::mem::transmute::<*mut c_void, Plain>(find(c"cudaDeviceSynchronize")?),
                begin_capture: std::mem::transmute::<*mut c_void, BeginCapture>(find(c"cudaStreamBeginCapture")?),
                end_capture: std::mem::transmute::<*mut c_void, EndCapture>(find(c"cudaStreamEndCapture")?),
            })
        }
    }

    /// Copies into x, from x to x's second half and back to the host, each waited for.
    fn round(&self, device: &Device, host: &mut [f32], told: &mut Told) -> Result<()> {
        let stream = device.streams[1].cast::<c_void>();
        let (x, memory) = (device.x as *mut c_void, host.as_mut_ptr().cast::<c_void>());
        let (to, from, half) = ([x, x.wrapping_byte_add(BYTES / 2), memory], [memory.cast_const(), x, x], BYTES / 2);
        for (at, (kind, name)) in KINDS.into_iter().enumerate() {
            // SAFETY: each side has half the vector's bytes, and they are waited for before it is used again.
            let error = unsafe { (self.copy)(to[at], from[at], half, kind, stream) };
            ensure!(error == 0, "cudaMemcpyAsync {name}: error {error}");
            let amount = told.copies.entry(name.to_owned()).or_default();
            amount.count += 1;
            amount.bytes += half as u64;
        }
        for wait in [true, false] {
            let start = Instant::now();
            // SAFETY: its own stream.
            let error = unsafe { if wait { (self.wait_stream)(stream) } else { (self.wait_device)() } };
            told.wait_ns += u64::try_from(start.elapsed().as_nanos())?;
            told.waits += 1;
            ensure!(error == 0, "a wait of libcudart: error {error}");
        }
        Ok(())
    }
}
