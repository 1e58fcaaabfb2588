//! Why the programs are not attached.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::programs::ProgramError;

use crate::discover::privilege::{Capability, Privileges};

/// Why the programs are not attached.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the BPF object {path} cannot be read: {error}")]
    Object { path: PathBuf, error: io::Error },
    #[error("the BPF object has no {what} named `{name}`")]
    Missing { what: &'static str, name: &'static str },
    #[error("the BPF object writes no log: {0}")]
    NoLog(String),
    #[error("the kernel refuses {what}: operation not permitted")]
    Permission { what: String },
    /// Kernels with the fix of CVE-2025-38466 want it whatever else is there (tests/tests/capabilities.rs tries it).
    #[error(
        "the kernel refuses attaching `{program}` to {point}: a uprobe that is a perf event takes CAP_SYS_ADMIN, and before Linux 6.10 each is one"
    )]
    Event { program: &'static str, point: String },
    #[error("{error}; {probes} probes that were placed before it are taken back")]
    Undone { probes: usize, error: Box<LoadError> },
    #[error("the kernel's verifier refuses program `{program}`: {error}\n{log}")]
    Verifier { program: &'static str, error: io::Error, log: String },
    #[error("cannot attach `{program}` to {point}: {error}")]
    Attach { program: &'static str, point: String, error: String },
    #[error("inferspan traces on x86-64 only for now: the programs read that machine's registers")]
    Architecture,
    #[error("inferspan runs in a pid namespace of its own, and the kernel reports the host's process ids")]
    PidNamespace,
    #[error("the BPF object cannot be loaded: {0}")]
    Other(String),
}

/// How a verifier names the helper `bpf_get_attach_cookie` (174 in include/uapi/linux/bpf.h) that its kernel does not have.
const NO_COOKIES: &str = "func unknown#174";

/// The operating system's error at the bottom of an error's chain.
fn root_errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && let Some(errno) = io.raw_os_error()
        {
            return Some(errno);
        }
        next = error.source();
    }
    None
}

/// An error with all its sources, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let source_text = source.to_string();
        if !text.contains(&source_text) {
            text.push_str(": ");
            text.push_str(&source_text);
        }
        next = source.source();
    }
    text
}

pub(super) fn load_error(error: &EbpfError) -> LoadError {
    match root_errno(error) {
        Some(libc::EPERM | libc::EACCES) => LoadError::Permission { what: "creating BPF maps".to_owned() },
        _ => LoadError::Other(chain(error)),
    }
}

pub(super) fn program_error(program: &'static str, error: &ProgramError) -> LoadError {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        // The verifier's own refusal is EACCES too; only a refusal that it did not explain is about privileges.
        if log.trim().is_empty() && matches!(io_error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
            return LoadError::Permission { what: format!("loading the BPF program `{program}`") };
        }
        if log.contains(NO_COOKIES) {
            let error = "this kernel has no attach cookies, which came with Linux 5.15".to_owned();
            return LoadError::Attach { program, point: "functions".to_owned(), error };
        }
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        let log = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        let error = io_error
            .raw_os_error()
            .map_or_else(|| io::Error::other(io_error.to_string()), io::Error::from_raw_os_error);
        return LoadError::Verifier { program, error, log };
    }
    attach_error(program, "the kernel".to_owned(), error)
}

pub(super) fn attach_error(program: &'static str, point: String, error: &ProgramError) -> LoadError {
    match root_errno(error) {
        Some(libc::EPERM | libc::EACCES) => LoadError::Permission { what: format!("attaching `{program}` to {point}") },
        _ => LoadError::Attach { program, point, error: chain(error) },
    }
}

/// As [`attach_error`], of a uprobe that is a perf event.
pub(super) fn event_error(program: &'static str, point: String, error: &ProgramError) -> LoadError {
    match root_errno(error) {
        Some(libc::EPERM | libc::EACCES) if !Privileges::own().has(Capability::SysAdmin) => {
            LoadError::Event { program, point }
        }
        _ => attach_error(program, point, error),
    }
}

pub(super) fn io_error(program: &'static str, point: String, error: &io::Error) -> LoadError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => LoadError::Permission { what: format!("attaching `{program}` to {point}") },
        _ => LoadError::Attach { program, point, error: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use aya_obj::VerifierLog;

    use super::*;

    #[test]
    fn a_kernel_without_attach_cookies_is_told_in_a_sentence() {
        let said = |log: &str| {
            let io_error = io::Error::from_raw_os_error(libc::EINVAL);
            let error = ProgramError::LoadError { io_error, verifier_log: VerifierLog::new(log.to_owned()) };
            program_error("cuda_call", &error).to_string()
        };
        let short = said("12: (bf) r1 = r7\n13: (85) call unknown#174\ninvalid func unknown#174\nstack depth 24\n");
        assert_eq!(
            short,
            "cannot attach `cuda_call` to functions: this kernel has no attach cookies, which came with Linux 5.15"
        );
        assert!(said("R1 invalid mem access 'inv'\n").contains("invalid mem access"));
    }
}
