//! Kernels of programs that are run, against what a scan of their stripped files says.
//!
//! Each program runs on a runtime that writes down what it is told (`fixtures/cuda/names/runtime.c`): host functions and their names,
//! variables with handles, return addresses of launches. None of them needs a GPU, or a driver.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use inferspan::kernel::table::FoundBy;
use inferspan::kernel::{self, ScanError, Table};
use inferspan_harness::installed;
use proptest::prelude::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cuda");

/// A folder of this test's own.
fn folder(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel-names").join(test);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("a program to start");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Builds the runtime that writes down.
fn runtime(folder: &Path) -> PathBuf {
    let library = folder.join("libcudart.so.13");
    let script = format!("-Wl,--version-script={FIXTURES}/names/runtime.map");
    run(Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-Wl,-soname,libcudart.so.13", &script, "-o"])
        .arg(&library)
        .arg(format!("{FIXTURES}/names/runtime.c"))
        .arg("-ldl"));
    library
}

/// What a program did, by address.
#[derive(Debug, Default)]
struct Truth {
    kernels: BTreeMap<u64, String>,
    handles: BTreeMap<u64, String>,
    /// Several names where a helper launches for all, as in unoptimised code.
    launches: BTreeMap<u64, BTreeSet<String>>,
}

impl Truth {
    fn of(program: &Path, runtime: &Path) -> Self {
        let mut truth = Self::default();
        let folder = runtime.parent().expect("a folder");
        for line in run(Command::new(program).env("LD_LIBRARY_PATH", folder)).lines() {
            let words: Vec<&str> = line.splitn(3, ' ').collect();
            let [what, address, name] = words[..] else { panic!("{line}") };
            let (address, name) = (address.parse().expect("an address"), name.to_owned());
            match what {
                "kernel" => drop(truth.kernels.insert(address, name)),
                "handle" => drop(truth.handles.insert(address, name)),
                "launch" => drop(truth.launches.entry(address).or_default().insert(name)),
                _ => panic!("{line}"),
            }
        }
        assert!(truth.kernels.len() >= 4 && truth.launches.values().flatten().count() >= 4, "{truth:?}");
        truth
    }

    /// Fails unless a table says the same. Launches of functions that are handed a kernel say nothing.
    fn must_be(&self, table: &Table, hands_on: bool, what: &str) {
        let kernels: BTreeMap<u64, String> = table.kernels().map(|(host, name)| (host, name.to_owned())).collect();
        assert_eq!(kernels, self.kernels, "{what}: kernels");
        assert_eq!(table.unread, 0, "{what}");
        for (variable, name) in &self.handles {
            assert_eq!(table.of_handle(*variable), Some(name.as_str()), "{what}: the handle at {variable:#x}");
        }
        for (address, names) in &self.launches {
            let name = names.first().filter(|_| names.len() == 1).map(String::as_str);
            let found = table.of_launch(*address);
            assert!(
                found == name || (hands_on && found.is_none()),
                "{what}: {found:?}, not {name:?}: the launch that returns to {address:#x}"
            );
        }
    }
}

fn scan(file: &Path) -> Result<Table, ScanError> {
    kernel::scan(fs::read(file).expect("a file").as_slice())
}

/// Takes a copy's symbols away, as distributions do.
fn stripped(program: &Path) -> PathBuf {
    let copy = program.with_extension("stripped");
    run(Command::new("strip").arg("-o").arg(&copy).arg(program));
    copy
}

/// Takes a copy's section headers away: what is left is what a loader reads.
fn without_sections(program: &Path) -> PathBuf {
    let copy = program.with_extension("bare");
    let mut bytes = fs::read(program).expect("a file");
    // e_shoff, and e_shentsize, e_shnum and e_shstrndx.
    bytes[40..48].fill(0);
    bytes[58..64].fill(0);
    fs::write(&copy, bytes).expect("a file");
    copy
}

/// Flags that change how addresses are passed and functions are called.
const BUILDS: [&[&str]; 15] = [
    &["-O0"],
    &["-O1"],
    &["-O2"],
    &["-O3"],
    &["-Os"],
    &["-O2", "-fno-plt"],
    &["-O0", "-fno-plt"],
    &["-O2", "-fcf-protection=full", "-Wl,-z,ibtplt"],
    &["-O2", "-fcf-protection=full", "-Wl,-z,now"],
    &["-O2", "-fno-pie", "-no-pie"],
    &["-O0", "-fno-pie", "-no-pie"],
    &["-O2", "-fPIC", "-DPREEMPTIBLE", "-rdynamic"],
    &["-O0", "-fPIC", "-DPREEMPTIBLE", "-rdynamic"],
    &["-O2", "-fPIC", "-Wl,-z,noseparate-code"],
    &["-O2", "-fomit-frame-pointer", "-fstack-protector-all"],
];

#[test]
fn every_kernel_and_launch_of_a_program_is_named_however_it_is_built() {
    let folder = folder("builds");
    let runtime = runtime(&folder);
    for (number, build) in BUILDS.iter().enumerate() {
        for style in [&[][..], &["-DHANDLES"]] {
            let what = format!("{build:?} {style:?}");
            let program = folder.join(format!("program-{number}-{}", style.len()));
            let source = format!("{FIXTURES}/names/program.c");
            run(Command::new("cc").args(*build).args(style).arg("-o").arg(&program).arg(source).arg(&runtime));
            let truth = Truth::of(&program, &runtime);
            for file in [stripped(&program), without_sections(&program), program] {
                let table = scan(&file).expect("an ELF file");
                assert_eq!(table.found_by, FoundBy::Import, "{what}");
                truth.must_be(&table, false, &what);
            }
        }
    }
}

#[test]
fn a_runtime_that_is_linked_in_and_stripped_is_found_by_how_it_is_called() {
    let folder = folder("linked-in");
    let dynamic = runtime(&folder);
    for build in [&["-O0"][..], &["-O1"], &["-O2"], &["-Os"], &["-O2", "-fno-pie", "-no-pie"]] {
        let program = folder.join("program");
        let sources = ["program.c", "runtime.c"].map(|name| format!("{FIXTURES}/names/{name}"));
        run(Command::new("cc")
            .args(build)
            .args(["-DHANDLES", "-fvisibility=hidden", "-o"])
            .arg(&program)
            .args(sources)
            .arg("-ldl"));
        let truth = Truth::of(&program, &dynamic);
        let table = scan(&program).expect("an ELF file");
        assert_eq!(table.found_by, FoundBy::Symbol, "{build:?}");
        truth.must_be(&table, false, &format!("{build:?}"));
        for file in [stripped(&program), without_sections(&program)] {
            let table = scan(&file).expect("an ELF file");
            assert_eq!(table.found_by, FoundBy::Shape, "{build:?}");
            // Which function launches is not to be seen there; the handle says the name.
            let kernels: BTreeMap<u64, String> = table.kernels().map(|(host, name)| (host, name.to_owned())).collect();
            assert_eq!(kernels, truth.kernels, "{build:?}");
        }
    }
}

#[test]
fn programs_of_the_real_compiler_are_named_like_their_launches() {
    let Some(nvcc) = installed::program("INFERSPAN_NVCC", Some("nvcc")) else { return };
    let folder = folder("nvcc");
    let runtime = runtime(&folder);
    let source = format!("{FIXTURES}/nvcc/kernels.cu");
    let link = format!("-L{}", folder.display());
    for build in [
        &["-O2"][..],
        // As CUDA before 12.8 launches.
        &["-O2", "-Xcompiler", "-D__NV_LEGACY_LAUNCH"],
        &["-O0", "-Xcompiler", "-O0"],
        &["-O0", "-Xcompiler", "-O0", "-Xcompiler", "-D__NV_LEGACY_LAUNCH"],
        &["-O3", "-Xcompiler", "-fno-plt"],
        &["-O2", "-Xcompiler", "-fno-pie,-no-pie"],
        &["-O2", "-default-stream", "per-thread"],
        &["-O2", "-static-global-template-stub=false", "-Xcompiler", "-fPIC"],
    ] {
        let program = folder.join("program");
        let arguments =
            ["-cudart", "none", "-arch", "sm_80", "-std=c++17", &link, "-Xlinker", "-l:libcudart.so.13", "-o"];
        run(Command::new(&nvcc).args(build).args(arguments).arg(&program).arg(&source));
        let truth = Truth::of(&program, &runtime);
        assert!(truth.kernels.len() >= 9, "{truth:?}");
        for file in [stripped(&program), program.clone()] {
            truth.must_be(&scan(&file).expect("an ELF file"), build.contains(&"-O0"), &format!("{build:?}"));
        }
    }
}

#[test]
fn the_real_runtime_linked_in_and_stripped_hides_no_kernel() {
    let Some(nvcc) = installed::program("INFERSPAN_NVCC", Some("nvcc")) else { return };
    let program = folder("nvcc-static").join("program");
    let source = format!("{FIXTURES}/nvcc/kernels.cu");
    run(Command::new(&nvcc)
        .args(["-cudart", "static", "-arch", "sm_80", "-std=c++17", "-o"])
        .arg(&program)
        .arg(&source));
    let with_symbols = scan(&program).expect("an ELF file");
    assert_eq!((with_symbols.found_by, with_symbols.kernels().len()), (FoundBy::Symbol, 9));
    let without = scan(&stripped(&program)).expect("an ELF file");
    assert_eq!(without.found_by, FoundBy::Shape);
    assert!(without.kernels().eq(with_symbols.kernels()));
}

proptest! {
    // A file is a target's: whatever is in it, a scan ends, in memory and time that the file's size bounds.
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_damaged_file_is_an_error_or_a_table_and_nothing_else(
        number in 0..HOSTILE.len(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..24),
        headers in proptest::collection::vec((0..1024_usize, prop_oneof![Just(0_u64), Just(u64::MAX), any::<u64>()]), 0..3),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mut bytes = HOSTILE[number].clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for (at, value) in headers {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let started = std::time::Instant::now();
        if let Ok(table) = kernel::scan(bytes.as_slice()) {
            prop_assert!(table.kernels().len() <= bytes.len() && table.launches().len() <= bytes.len());
        }
        prop_assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }
}

/// Whole files that are damaged: with symbols, without, and with the runtime linked in.
static HOSTILE: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let folder = folder("hostile");
    let runtime = runtime(&folder);
    let program = folder.join("program");
    let source = format!("{FIXTURES}/names/program.c");
    run(Command::new("cc").args(["-O2", "-DHANDLES", "-o"]).arg(&program).arg(&source).arg(&runtime));
    let whole = folder.join("whole");
    let linked_in = format!("{FIXTURES}/names/runtime.c");
    run(Command::new("cc")
        .args(["-O2", "-fvisibility=hidden", "-o"])
        .arg(&whole)
        .args([&source, &linked_in])
        .arg("-ldl"));
    let files = [stripped(&program), without_sections(&program), program, stripped(&whole), whole];
    files.map(|file| fs::read(file).expect("a file")).to_vec()
});
