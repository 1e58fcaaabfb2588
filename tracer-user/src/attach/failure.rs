//! What a user is told when the programs are not attached: the exit code, and what to do.

use super::LoadError;
use crate::discover::privilege::{NEEDED, Privileges, why_refused};
use crate::exit::{Code, Failure};

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match &error {
            LoadError::Permission { .. } | LoadError::Event { .. } => {
                let why = why_refused(&Privileges::own().missing_for_bpf());
                let fix =
                    format!("run inferspan as root (sudo), or give it {NEEDED}; `inferspan doctor` checks the rest");
                Failure::new(Code::Permission, format!("{error}: {why}"), fix)
            }
            LoadError::PidNamespace => Failure::new(
                Code::Unsupported,
                error.to_string(),
                "run it on the host, or share its pid namespace (docker: --pid=host, Kubernetes: hostPID: true)",
            ),
            LoadError::Architecture => Failure::new(
                Code::Unsupported,
                error.to_string(),
                "trace a server on an x86-64 host; `inferspan replay` works everywhere",
            ),
            LoadError::NoLog(_) => Failure::new(
                Code::Usage,
                error.to_string(),
                "build one with `cargo xtask ebpf --features debug-log` and name it with --bpf-object",
            ),
            LoadError::Object { .. } | LoadError::Missing { .. } => Failure::new(
                Code::Usage,
                error.to_string(),
                "give --bpf-object a file built from this version (`cargo xtask ebpf`), or leave it out",
            ),
            LoadError::Verifier { .. } | LoadError::Attach { .. } | LoadError::Undone { .. } | LoadError::Other(_) => {
                Failure::new(
                    Code::Unsupported,
                    error.to_string(),
                    "`inferspan doctor` checks what the kernel must offer (Linux 5.15 or later, BTF)",
                )
            }
        }
    }
}
