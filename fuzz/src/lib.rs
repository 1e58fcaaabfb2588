//! Fuzz targets: a function each, of bytes that somebody hostile chose.
//!
//! Enters: any bytes. Leaves: nothing, or a panic. Invariants, of each target what can hold for it: nothing panics (built with debug
//! assertions and overflow checks), what is held is bounded by what came in, the same bytes twice give the same, and a stream that is cut
//! elsewhere gives the same where that is promised. `cargo xtask fuzz NAME` runs one under libFuzzer; `cargo test -p inferspan-fuzz` runs
//! all of them over what is kept in `corpus/`.

pub mod bytes;
pub mod engine;
pub mod exchange;
pub mod files;
pub mod inputs;
pub mod pipeline;
pub mod streams;
pub mod texts;

/// One target.
pub type Target = fn(&[u8]);

/// Every target, by the name of its binary and its corpus.
pub const TARGETS: [(&str, Target); 13] = [
    ("btf", texts::btf),
    ("elf", files::elf),
    ("http", streams::http),
    ("json", streams::json),
    ("msgpack", streams::msgpack),
    ("pipeline", pipeline::pipeline),
    ("proc_text", texts::proc_text),
    ("recording", files::recording),
    ("records", texts::records),
    ("sse", streams::sse),
    ("syscall_log", files::syscall_log),
    ("traces", files::traces),
    ("zmtp", streams::zmtp),
];

/// The target with this name.
///
/// # Panics
/// When there is none.
pub fn named(name: &str) -> Target {
    TARGETS.iter().find(|(other, _)| *other == name).expect("a target of the list").1
}

/// Runs a target on files, as one reproduces a crash without libFuzzer: `cargo run -p inferspan-fuzz --bin NAME FILE…`.
///
/// # Panics
/// When a file does not read, and where the target does.
pub fn on_files(name: &str) {
    for path in std::env::args_os().skip(1) {
        let bytes = std::fs::read(&path).expect("the file reads");
        named(name)(&bytes);
        eprintln!("{name}: {} bytes of {}: nothing found", bytes.len(), path.display());
    }
}

#[cfg(fuzzing)]
pub use libfuzzer_sys;

/// The program of a target: libFuzzer's, or one that reads files where libFuzzer is not built in.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::named(stringify!($name))(bytes));

        #[cfg(not(fuzzing))]
        fn main() {
            $crate::on_files(stringify!($name));
        }
    };
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files.map(|path| (path.display().to_string(), std::fs::read(&path).unwrap())).collect();
        files.sort();
        files
    }

    #[test]
    fn nothing_that_is_kept_breaks_a_target() {
        for (name, target) in TARGETS {
            let files = corpus(name);
            assert!(files.len() > 4, "{name} has a corpus of {}", files.len());
            for (path, bytes) in files {
                let fine = std::panic::catch_unwind(|| target(&bytes)).is_ok();
                assert!(fine, "{path}: run `cargo run -p inferspan-fuzz --bin {name} {path}`");
            }
        }
    }

    #[test]
    fn what_is_kept_is_small() {
        // The repository carries it: 2 MB.
        let bytes: usize = TARGETS.iter().flat_map(|(name, _)| corpus(name)).map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes < 2_000_000, "{bytes} bytes");
    }

    #[test]
    fn every_target_has_a_program() {
        for (name, _) in TARGETS {
            let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz_targets").join(name).with_extension("rs");
            let text = std::fs::read_to_string(program).unwrap();
            assert!(text.contains(&format!("target!({name})")), "{name}");
        }
    }
}
