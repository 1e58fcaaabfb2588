//! What a user is told when the programs are not attached: the exit code, and what to do.

use super::LoadError;
use crate::discover::privilege::Privileges;
use crate::exit::{Code, Failure};

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match &error {
            LoadError::Permission { .. } => {
                let missing = Privileges::own().missing_for_bpf();
                let names: Vec<&str> = missing.iter().map(|capability| capability.name()).collect();
                let why = if names.is_empty() {
                    "the capabilities are there, so a security module, kernel lockdown or seccomp profile forbids it"
                        .to_owned()
                } else {
                    format!("missing {}", names.join(" and "))
                };
                Failure::new(
                    Code::Permission,
                    format!("{error}: {why}"),
                    "run inferspan as root (sudo), or give it CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE; `inferspan doctor` checks the rest",
                )
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
            LoadError::Verifier { .. } | LoadError::Attach { .. } | LoadError::Other(_) => Failure::new(
                Code::Unsupported,
                error.to_string(),
                "`inferspan doctor` checks what the kernel must offer (Linux 5.15 or later, BTF)",
            ),
        }
    }
}
