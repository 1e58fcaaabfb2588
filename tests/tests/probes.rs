//! `inferspan probes` and `doctor`, asked of CUDA libraries of each kind: what they say is what `attach` does.

use std::path::Path;
use std::process::{Command, Output};

use inferspan::attach::family::TRACEPOINTS;
use inferspan_harness::folder::Folder;
use inferspan_tests::cuda::{Driver, Fixture, Patch, Running, Runtime};
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;
use serde_json::{Value, json};

fn run(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).output().expect("inferspan runs")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn document(arguments: &[&str]) -> Value {
    let output = run(arguments);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output)))
}

fn probes(process: &Running) -> Value {
    document(&["probes", "--json", "-p", &process.pid().to_string()])
}

/// The library of this family, as one whose file's name ends so.
fn library<'a>(document: &'a Value, family: &str, file: &str) -> &'a Value {
    let mut all = document["libraries"].as_array().expect("libraries").iter();
    let is_it = |library: &&Value| {
        library["family"] == family && library["path"].as_str().is_some_and(|path| path.ends_with(file))
    };
    all.find(is_it).unwrap_or_else(|| panic!("no {family} in {file}: {document:#}"))
}

fn point<'a>(library: &'a Value, symbol: &str) -> &'a Value {
    let mut points = library["points"].as_array().expect("points").iter();
    points.find(|point| point["symbol"] == symbol).unwrap_or_else(|| panic!("no {symbol}: {library:#}"))
}

/// Status and detail of the checks of CUDA.
fn cuda_checks(process: &Running) -> Vec<(String, String)> {
    let document = document(&["doctor", "--json", "-p", &process.pid().to_string()]);
    let checks = document["checks"].as_array().expect("checks").iter().filter(|check| check["name"] == "cuda");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    checks.map(|check| (text(&check["status"]), text(&check["detail"]))).collect()
}

#[test]
fn a_driver_is_probed_on_an_instruction_that_is_emulated_where_arguments_are_untouched() {
    let test = "a_driver_is_probed_on_an_instruction_that_is_emulated_where_arguments_are_untouched";
    let Some(fixture) = Fixture::for_test(test) else { return };
    for (driver, at, why) in [
        (Driver::Old, 10, "the second instruction is je, behind cmp"),
        (Driver::New, 0, "the first instruction is push"),
    ] {
        let mut running = fixture.program(driver, Runtime::V13).script("launch gemm").spawn().expect("it starts");
        let document = probes(&running);
        assert_eq!((&document["schema"], &document["process"]), (&json!("inferspan.probes/1"), &json!(running.pid())));
        let libcuda = library(&document, "CUDA driver", "libcuda.so.1");
        assert_eq!((&libcuda["soname"], &libcuda["refused"]), (&json!("libcuda.so.1"), &Value::Null));
        let launch = point(libcuda, "cuLaunchKernel");
        assert_eq!((&launch["at"], &launch["emulated"]), (&json!(at), &json!(true)), "{driver:?}");
        assert_eq!(launch["why"], json!(why));
        assert_eq!((&launch["programs"], &launch["refused"]), (&json!(["cuda_launch"]), &Value::Null));
        let copy = point(library(&document, "CUDA runtime", "libcudart.so.13"), "cudaMemcpyAsync");
        assert_eq!(copy["refused"], Value::Null);
        // Launches at the runtime are the driver's already.
        let besides = point(library(&document, "launches of the CUDA runtime", "libcudart.so.13"), "cudaLaunchKernel");
        assert!(besides["refused"].as_str().is_some_and(|why| why.contains("CUDA driver is mapped")), "{besides}");
        let checks = cuda_checks(&running);
        assert!(checks.iter().all(|(status, _)| status == "OK"), "{checks:?}");
        let said = format!(" at +{at}: {why}");
        let is_driver = |detail: &str| detail.contains("CUDA driver: ") && detail.ends_with(&said);
        assert!(checks.iter().any(|(_, detail)| is_driver(detail)), "{checks:?}");
        assert_eq!(document["memory_hooks"], Value::Null);
        running.start().expect("it waits");
        running.finish().expect("it lives");
    }
}

#[test]
fn what_is_said_is_what_is_attached() {
    let test = "what_is_said_is_what_is_attached";
    let Some(fixture) = Fixture::for_test(test).filter(|_| may_trace(test)) else { return };
    let has_btf = Path::new("/sys/kernel/btf/vmlinux").exists();
    let tracepoints = TRACEPOINTS.iter().filter(|tracepoint| has_btf || !tracepoint.needs_btf).count();
    for (driver, patch) in [(Driver::Old, None), (Driver::New, Some(Patch::ReadExecute)), (Driver::None, None)] {
        let program = fixture.program(driver, Runtime::V12).script("launch gemm");
        let program = patch.map_or(program.clone(), |patch| program.patched(patch));
        let running = program.spawn().expect("it starts");
        let document = probes(&running);
        let libraries = document["libraries"].as_array().expect("libraries").iter();
        let points = libraries.flat_map(|library| library["points"].as_array().expect("points"));
        let probed = points.filter(|point| point["refused"].is_null());
        let said: usize = probed.map(|point| point["programs"].as_array().expect("programs").len()).sum();
        let pid = running.pid().to_string();
        let attach = run(&["attach", "--cuda-only", "--level", "steps", "--duration", "500ms", "-p", &pid]);
        let expected = format!("with {} probes at level steps", said + tracepoints);
        assert!(self::said(&attach).contains(&expected), "{driver:?}: {expected}\n{}", self::said(&attach));
    }
}

#[test]
fn the_offsets_are_those_of_the_file() {
    let Some(fixture) = Fixture::for_test("the_offsets_are_those_of_the_file") else { return };
    let path = fixture.libcuda(Driver::Old).expect("a driver");
    let document = document(&["probes", "--json", path.to_str().expect("UTF-8")]);
    assert_eq!(document["process"], Value::Null);
    let launch = point(library(&document, "CUDA driver", "libcuda.so.1"), "cuLaunchKernel");
    let offset = usize::try_from(launch["offset"].as_u64().expect("a number")).expect("fits");
    let bytes = std::fs::read(path).expect("the file");
    // `cmp dword [rip+…], …; je`: R550's trampoline (tests/fixtures/cuda/exports.S).
    assert_eq!((&bytes[offset..offset + 2], bytes[offset + 10]), (&[0x81, 0x3d][..], 0x74));
}

#[test]
fn where_a_name_is_and_how_that_is_known_is_said() {
    let Some(fixture) = Fixture::for_test("where_a_name_is_and_how_that_is_known_is_said") else { return };
    for (folder, offset) in [("driver-old", 8), ("driver-new", 8), ("driver-old-16", 16), ("driver-new-16", 16)] {
        let path = fixture.folder().join(folder).join("libcuda.so.1");
        let path = path.to_str().expect("UTF-8");
        let document = document(&["probes", "--json", path]);
        let libcuda = library(&document, "CUDA driver", "libcuda.so.1");
        let said = (&libcuda["name_offset"], &libcuda["name_offset_from"]);
        assert_eq!(said, (&json!(offset), &json!("cuFuncGetName")), "{folder}");
        let text = self::said(&run(&["probes", path]));
        assert!(text.contains(&format!("name is at {offset} of its handle, as cuFuncGetName reads it")), "{text}");
    }
}

#[test]
fn launches_are_the_runtimes_where_no_driver_is_mapped() {
    let Some(fixture) = Fixture::for_test("launches_are_the_runtimes_where_no_driver_is_mapped") else { return };
    let running = fixture.program(Driver::None, Runtime::V12).script("launch gemm").spawn().expect("it starts");
    let document = probes(&running);
    let launches = library(&document, "launches of the CUDA runtime", "libcudart.so.12");
    assert_eq!(point(launches, "cudaLaunchKernel")["refused"], Value::Null);
}

#[test]
fn patched_code_is_refused_with_the_reason_and_nothing_else_is() {
    let Some(fixture) = Fixture::for_test("patched_code_is_refused_with_the_reason_and_nothing_else_is") else {
        return;
    };
    for driver in [Driver::Old, Driver::New] {
        for (patch, expected) in
            [(Patch::ReadExecute, "was patched in memory"), (Patch::ReadWriteExecute, "can be written to")]
        {
            let program = fixture.program(driver, Runtime::V13).patched(patch).script("launch gemm");
            let mut running = program.spawn().expect("it starts");
            let document = probes(&running);
            let libcuda = library(&document, "CUDA driver", "libcuda.so.1");
            let why = point(libcuda, "cuLaunchKernel")["refused"].as_str().unwrap_or_default().to_owned();
            assert!(why.contains(expected) && why.contains(&running.pid().to_string()), "{driver:?} {patch:?} {why}");
            let runtime = library(&document, "CUDA runtime", "libcudart.so.13");
            assert_eq!(point(runtime, "cudaMemcpyAsync")["refused"], Value::Null);
            let checks = cuda_checks(&running);
            let warned: Vec<_> = checks.iter().filter(|(status, _)| status == "WARN").collect();
            assert!(matches!(warned.as_slice(), [(_, detail)] if detail.contains(expected)), "{checks:?}");
            running.start().expect("it waits");
            running.finish().expect("nothing was done to it");
        }
    }
}

#[test]
fn what_only_looks_like_cuda_is_told_and_not_probed() {
    let Some(fixture) = Fixture::for_test("what_only_looks_like_cuda_is_told_and_not_probed") else { return };
    for (file, family) in [("libstub_cuda.so", "CUDA driver"), ("libstub_cudart.so", "CUDA runtime")] {
        let path = fixture.common(file);
        let document = document(&["probes", "--json", path.to_str().expect("UTF-8")]);
        let stub = library(&document, family, file);
        assert_eq!(stub["points"], json!([]));
        let why = stub["refused"].as_str().expect("a reason");
        assert!(why.contains("only looks like one") && why.contains(file), "{why}");
    }
}

#[test]
fn a_library_that_is_called_as_the_driver_and_is_none_is_not_probed() {
    let test = "a_library_that_is_called_as_the_driver_and_is_none_is_not_probed";
    if Fixture::for_test(test).is_none() {
        return;
    }
    let folder = Folder::scratch("probes").expect("a folder");
    let (source, library_file) = (folder.path().join("none.c"), folder.path().join("libcuda.so.1"));
    std::fs::write(&source, "int cuLaunchKernel(void) { return 0; }\n").expect("write");
    let mut build = Command::new(std::env::var("CC").unwrap_or_else(|_| "gcc".to_owned()));
    build.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]).arg(&library_file).arg(&source);
    assert!(build.status().expect("gcc").success());
    let document = document(&["probes", "--json", library_file.to_str().expect("UTF-8")]);
    let fake = library(&document, "CUDA driver", "libcuda.so.1");
    assert!(fake["refused"].as_str().is_some_and(|why| why.contains("lacks exports")), "{fake}");
}

#[test]
fn the_table_says_it_in_words() {
    let Some(fixture) = Fixture::for_test("the_table_says_it_in_words") else { return };
    let output = run(&["probes", fixture.libcuda(Driver::Old).expect("a driver").to_str().expect("UTF-8")]);
    let text = said(&output);
    assert!(output.status.success() && text.contains("CUDA driver, SONAME libcuda.so.1; level steps"), "{text}");
    let line = text.lines().find(|line| line.trim_start().starts_with("cuLaunchKernel ")).expect("a line");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!((words[2], words[3], words[4]), ("+10", "emulated", "cuda_launch"), "{line}");
    assert!(line.ends_with("(the second instruction is je, behind cmp)"), "{line}");
}

#[test]
fn errors_have_the_codes_that_scripts_rely_on() {
    let code = |arguments: &[&str]| run(arguments).status.code();
    assert_eq!(code(&["probes", "/does/not/exist"]), Some(3));
    assert_eq!(code(&["probes", "-p", "4194304"]), Some(3));
    assert_eq!(code(&["probes"]), Some(2));
    assert_eq!(code(&["probes", "/etc/passwd"]), Some(0), "no library, and that is no error");
}
