//! Programs of the real compiler on the real runtime, traced: without a GPU every launch fails, and is made all the same.
//!
//! ```text
//! program │ 10 times each kernel ─ (attach) ─ 25 times each kernel
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use inferspan_harness::folder::Folder;
use inferspan_harness::installed;
use inferspan_tests::cuda::Running;
use inferspan_tests::cuda::traced::{Kernel, Tracer};
use inferspan_tests::live::may_trace;

/// A part of the demangled name, grid, block, dynamic shared memory: as `live.cu` launches them.
const KERNELS: [(&str, [u32; 3], [u32; 3], u32); 8] = [
    ("scale_kernel<float, 4>(float*, float)", [7, 2, 3], [32, 4, 2], 1024),
    ("scale_kernel<double, 1>(double*, double)", [5, 1, 1], [96, 1, 1], 0),
    ("vllm::rms_norm_kernel<float>(float*, float const*)", [11, 1, 1], [128, 1, 1], 48),
    ("unnamed_kernel(int*)", [2, 1, 1], [64, 1, 1], 0),
    ("static_kernel(int*)", [3, 1, 1], [32, 1, 1], 0),
    ("plain_c_kernel", [1, 1, 1], [1, 1, 1], 0),
    ("cooperative_kernel(int*)", [6, 1, 1], [256, 1, 1], 2048),
    ("vllm::rms_norm_kernel<double>(double*, double const*)", [9, 8, 1], [16, 16, 1], 512),
];
/// Launches of each behind the attach.
const TIMES: u64 = 25;

/// Builds the program, stripped; `None`, said loudly, without nvcc.
fn build(test: &str, folder: &Path, arguments: &[&str]) -> Option<PathBuf> {
    if !may_trace(test) {
        return None;
    }
    let nvcc = installed::program("INFERSPAN_NVCC", Some("nvcc"))?;
    let program = folder.join("program");
    let mut command = Command::new(nvcc);
    command.args(["-arch", "sm_80", "-std=c++17", "-Xlinker", "-s"]).args(arguments).arg("-o").arg(&program);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cuda/nvcc/live.cu"));
    let output = command.output().expect("nvcc starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(program)
}

/// The folder of the runtime that comes with nvcc, and of CUDA 12's beside it.
fn runtimes() -> Option<[PathBuf; 2]> {
    let nvcc = installed::program("INFERSPAN_NVCC", Some("nvcc"))?;
    let root = nvcc.parent().and_then(Path::parent).expect("nvidia/cu13");
    Some([root.join("lib"), root.with_file_name("cuda_runtime").join("lib")])
}

#[test]
fn launches_of_a_stripped_program_are_counted_named_and_measured() {
    const TEST: &str = "launches_of_a_stripped_program_are_counted_named_and_measured";
    let folder = Folder::scratch("nvcc").expect("a folder");
    let Some([cuda13, cuda12]) = runtimes() else { return };
    // As nvcc 13 launches, through handles; as nvcc before 12.8 did; without optimisation.
    let (handles, legacy, plain): (&[_], &[_], &[_]) =
        (&["-O2"], &["-O2", "-Xcompiler", "-D__NV_LEGACY_LAUNCH"], &["-O0", "-Xcompiler", "-O0"]);
    for (build_as, runtime) in
        [(handles, &cuda13), (legacy, &cuda13), (plain, &cuda13), (handles, &cuda12), (legacy, &cuda12)]
    {
        let from = format!("-L{}", runtime.display());
        let linked = ["-cudart", "none", &from, "-lcudart"];
        let Some(program) = build(TEST, folder.path(), &[&linked, build_as].concat()) else { return };
        let mut command = Command::new(&program);
        command.env("LD_LIBRARY_PATH", runtime);
        let mut running = Running::spawn(command).expect("start");
        running.start().expect("it waits");
        running.reach_wait().expect("it waits again");
        let tracer = Tracer::attach("nvcc", running.pid(), &["--level", "kernels"]);
        running.start().expect("it waits");
        let account = running.account().expect("its account");
        let seen = tracer.end();
        let what = format!("{build_as:?}, {from}: {account}{}", seen.said);
        let find = |name: &str| -> &Kernel {
            let is_it = |kernel: &&Kernel| {
                kernel.demangled.trim_start_matches("void ").trim_start_matches("(anonymous namespace)::") == name
            };
            seen.kernels.iter().find(is_it).unwrap_or_else(|| panic!("{name} is none of {:#?}\n{what}", seen.kernels))
        };
        for (name, grid, block, shared) in KERNELS {
            let kernel = find(name);
            let shape = (kernel.launches, kernel.grid, kernel.block, kernel.shared_memory);
            assert_eq!(shape, (TIMES, Some(grid), Some(block), Some(shared)), "{name}: {what}");
        }
        assert_eq!(seen.kernels.len(), KERNELS.len(), "{what}");
        assert_eq!(seen.count("inferspan_cuda_launches_total", ""), TIMES * KERNELS.len() as u64, "{what}");
    }
}

#[test]
fn a_runtime_that_is_linked_in_launches_at_the_driver_alone() {
    // It has no exports, and here is no driver for its launches to pass: nothing is counted, and nothing is made up.
    const TEST: &str = "a_runtime_that_is_linked_in_launches_at_the_driver_alone";
    let folder = Folder::scratch("nvcc-static").expect("a folder");
    let Some(program) = build(TEST, folder.path(), &["-O2", "-cudart", "static"]) else { return };
    let mut running = Running::spawn(Command::new(&program)).expect("start");
    running.start().expect("it waits");
    running.reach_wait().expect("it waits again");
    let tracer = Tracer::attach("nvcc-static", running.pid(), &["--level", "kernels"]);
    running.start().expect("it waits");
    let account = running.account().expect("its account");
    let seen = tracer.end();
    assert_eq!(seen.count("inferspan_cuda_launches_total", ""), 0, "{account}: {}", seen.said);
    assert!(seen.kernels.is_empty(), "{:?}", seen.kernels);
}
