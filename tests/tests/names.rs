//! The verb `names`: what it prints, and how it ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use inferspan_tests::judge::binary;
use serde_json::Value;

fn names(arguments: &[&str]) -> Output {
    Command::new(binary()).arg("names").args(arguments).stdin(Stdio::null()).output().expect("the binary")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn cc(arguments: &[&str], output: &Path) {
    let status = Command::new("cc").args(arguments).arg("-o").arg(output).status().expect("cc, which Rust links with");
    assert!(status.success());
}

/// A stripped library that registers four kernels when it is loaded, and the runtime that it needs, in a folder of their own.
fn library(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("names").join(test);
    fs::create_dir_all(&folder).expect("a folder");
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cuda/names");
    let (runtime, library) = (folder.join("libcudart.so.13"), folder.join("libkernels.so"));
    let script = format!("-Wl,--version-script={fixtures}/runtime.map");
    cc(
        &["-shared", "-fPIC", "-Wl,-soname,libcudart.so.13", &script, &format!("{fixtures}/runtime.c"), "-ldl"],
        &runtime,
    );
    let runtime = runtime.to_str().expect("UTF-8");
    cc(&["-shared", "-fPIC", "-s", "-O2", "-DHANDLES", &format!("{fixtures}/program.c"), runtime], &library);
    library
}

/// A program that maps the library and does nothing.
struct Mapping(Child);

impl Mapping {
    fn start(library: &Path) -> Self {
        let child = Command::new("sleep")
            .arg("60")
            .env("LD_PRELOAD", library)
            .env("LD_LIBRARY_PATH", library.parent().expect("a folder"))
            .stdout(Stdio::null())
            .spawn()
            .expect("sleep");
        let mapped = || {
            let maps = fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap_or_default();
            // The runtime comes after the library that needs it.
            maps.contains("libcudart.so.13") && maps.contains("sleep")
        };
        while !mapped() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Self(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const SHORT: [&str; 4] = ["add", "never_launched", "scale", "vllm::rms_norm_kernel"];

fn shorts(document: &Value) -> Vec<String> {
    let kernels = document["kernels"].as_array().expect("a list");
    let mut shorts: Vec<String> =
        kernels.iter().map(|kernel| kernel["short"].as_str().expect("a text").to_owned()).collect();
    shorts.sort();
    shorts
}

#[test]
fn a_file_gives_one_document_with_its_kernels_by_address() {
    let library = library("file");
    let path = library.to_str().expect("UTF-8");
    let output = names(&[path, "--json"]);
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
    let document: Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!((document["schema"].as_str(), document["library"].as_str()), (Some("inferspan.names/1"), Some(path)));
    assert_eq!(document.as_object().map(serde_json::Map::len), Some(3));
    assert_eq!(shorts(&document), SHORT);
    let kernels = document["kernels"].as_array().expect("a list");
    let addresses: Vec<u64> = kernels.iter().map(|kernel| kernel["address"].as_u64().expect("a number")).collect();
    assert!(addresses.is_sorted() && addresses[0] > 0, "{addresses:?}");
    let norm = kernels.iter().find(|kernel| kernel["class"] == "norm").expect("the norm");
    assert_eq!(norm["name"], "_ZN4vllm15rms_norm_kernelIfLi1ELi2ELb0EEEvPT_PKS1_lllllS4_lfii");
    assert!(
        norm["demangled"]
            .as_str()
            .is_some_and(|name| name.starts_with("void vllm::rms_norm_kernel<float, 1, 2, false>("))
    );
    let table = text(&names(&[path]).stdout);
    assert_eq!(table.lines().count(), 5, "{table}");
    assert!(table.starts_with("ADDRESS") && SHORT.iter().all(|short| table.contains(short)), "{table}");
}

#[test]
fn a_process_gives_a_line_for_each_library_with_kernels_also_when_its_file_is_deleted() {
    let library = library("process");
    let process = Mapping::start(&library);
    let cache = library.with_extension("cache");
    let _ = fs::remove_dir_all(&cache);
    // Anew, from the cache, and with the file gone.
    for turn in 0..3 {
        let output = Command::new(binary())
            .args(["names", "-p", &process.pid(), "--json"])
            .env("XDG_CACHE_HOME", &cache)
            .output()
            .expect("the binary");
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let lines: Vec<Value> =
            text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("a document a line")).collect();
        assert_eq!(lines.len(), 1, "turn {turn}: {lines:?}");
        assert_eq!(
            (lines[0]["library"].as_str(), shorts(&lines[0])),
            (library.to_str(), SHORT.map(str::to_owned).to_vec())
        );
        if turn == 1 {
            fs::remove_file(&library).expect("the file");
            if !inferspan_tests::live::may_trace("a deleted library, through /proc/PID/map_files") {
                break;
            }
        }
    }
}

#[test]
fn what_is_no_library_has_the_exit_code_that_scripts_rely_on() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("names");
    fs::create_dir_all(&folder).expect("a folder");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let mut aarch64 = [0; 64];
    aarch64[..6].copy_from_slice(b"\x7fELF\x02\x01");
    aarch64[18] = 183;
    let own = fs::read("/bin/true").expect("a program");
    for (path, code, says) in [
        ("/no/such/library.so".to_owned(), 3, "No such file"),
        (file("text", b"not a library"), 2, "not an ELF file"),
        (file("aarch64", &aarch64), 5, "aarch64"),
        (file("cut", &own[..100]), 2, "damaged"),
        (folder.to_str().expect("UTF-8").to_owned(), 2, "not a regular file"),
        ("/dev/null".to_owned(), 2, "not a regular file"),
    ] {
        let output = names(&[&path, "--json"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{path}: {said}");
        assert!(said.contains(says) && said.contains("fix:") && output.stdout.is_empty(), "{path}: {said}");
    }
    for arguments in [&[][..], &["/bin/true", "-p", "1"], &["-p", "0"]] {
        assert_eq!(names(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(names(&["-p", "4194304"]).status.code(), Some(3));
}

#[test]
fn a_library_without_kernels_is_an_empty_list_and_a_line_on_stderr() {
    let output = names(&["/bin/true", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "{\"schema\":\"inferspan.names/1\",\"library\":\"/bin/true\",\"kernels\":[]}\n");
    assert!(text(&output.stderr).contains("registers no CUDA kernels"), "{}", text(&output.stderr));
}
