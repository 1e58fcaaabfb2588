//! Why a PID does not lead to a server: a text, an exit code and a fix each.
//!
//! Names of processes in these texts have been through [`crate::sanitise::printable`].

use super::privilege::{NEEDED, Privileges, why_refused};
use crate::exit::{Code, Failure};

/// Largest PID that Linux gives (`PID_MAX_LIMIT` on 64-bit machines).
pub const PID_MAX: u32 = 4_194_304;

/// What to do about a server that is not there.
pub const LIST: &str = "`inferspan ls` lists the inference servers on this host";

/// Reads a PID as a user types it.
pub fn parse_pid(text: &str) -> Result<u32, String> {
    match text.trim().parse::<i64>() {
        Ok(pid) if pid <= 0 => Err(format!("a process id is a positive number, {pid} is not; {LIST}")),
        Ok(pid) if pid > i64::from(PID_MAX) => Err(format!("process ids end at {PID_MAX}; {LIST}")),
        Ok(pid) => Ok(pid as u32),
        Err(_) => Err(format!("a process id is a number; {LIST}")),
    }
}

pub fn no_pid(pid: u32) -> Failure {
    let why =
        if pid == 0 { "0 names no process".to_owned() } else { format!("process ids end at {PID_MAX}, {pid} is none") };
    Failure::new(Code::Usage, why, LIST)
}

/// What makes a process that exists look as if it did not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hidden {
    /// The `hidepid=` option of `/proc`, when it hides others' processes from this user.
    pub hidepid: Option<String>,
    /// This process is not in the host's first pid namespace.
    pub inner_namespace: bool,
    /// Processes that have this PID inside a container of theirs; servers only, when any is one.
    pub inside: Vec<u32>,
}

impl Hidden {
    /// The likeliest explanation, and its fix.
    fn explain(&self, pid: u32) -> Option<(String, String)> {
        if let Some(outer) = self.inside.first() {
            let others = if self.inside.len() > 1 { format!(" (one of {})", self.inside.len()) } else { String::new() };
            let why = format!("{pid} is the PID inside a container; out here that process is {outer}{others}");
            return Some((why, format!("use -p {outer}")));
        }
        if let Some(option) = &self.hidepid {
            let why = format!("other users' processes are hidden here: /proc is mounted with hidepid={option}");
            return Some((why, "run inferspan as root, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH".to_owned()));
        }
        self.inner_namespace.then(|| {
            (
                "inferspan runs in a pid namespace of its own and sees only what is in it".to_owned(),
                "run it on the host, or share its pid namespace (docker: --pid=host, Kubernetes: hostPID: true)"
                    .to_owned(),
            )
        })
    }
}

pub fn no_process(pid: u32, hidden: &Hidden) -> Failure {
    match hidden.explain(pid) {
        Some((why, fix)) => Failure::new(Code::NoTarget, format!("there is no process {pid}: {why}"), fix),
        None => Failure::new(Code::NoTarget, format!("there is no process {pid}"), LIST),
    }
}

pub fn thread(pid: u32, process: u32, name: &str) -> Failure {
    Failure::new(
        Code::NoTarget,
        format!("{pid} is a thread of process {process} (`{name}`), not a process"),
        format!("use -p {process}"),
    )
}

pub fn zombie(pid: u32, name: &str) -> Failure {
    Failure::new(
        Code::NoTarget,
        format!("process {pid} (`{name}`) has ended; it is a zombie that its parent has not collected"),
        format!("start the server again, then name its new PID; {LIST}"),
    )
}

pub fn gone(pid: u32) -> Failure {
    Failure::new(Code::NoTarget, format!("process {pid} ended while it was looked at"), LIST)
}

pub fn reused(pid: u32) -> Failure {
    Failure::new(
        Code::NoTarget,
        format!("process {pid} ended while it was looked at, and its PID now belongs to another process"),
        LIST,
    )
}

pub fn forbidden(pid: u32, name: &str) -> Failure {
    let why = why_refused(&Privileges::own().missing_for_looking());
    Failure::new(
        Code::Permission,
        format!("process {pid} (`{name}`) may not be looked into: reading /proc/{pid} was refused: {why}"),
        format!(
            "run inferspan as root (sudo), or give it {NEEDED}; in a container also hostPID and a profile that allows it"
        ),
    )
}

pub fn kernel_thread(pid: u32, name: &str, hidden: &Hidden) -> Failure {
    unsupported(pid, format!("{pid} is a thread of the kernel (`{name}`), not a server"), hidden)
}

/// `kind` says what it looks like, e.g. "a Python program".
pub fn no_server(pid: u32, name: &str, kind: &str, hidden: &Hidden) -> Failure {
    let what = format!(
        "process {pid} is not an inference server: it looks like {kind} (`{name}`); neither its title, its command line nor its children are those of one"
    );
    unsupported(pid, what, hidden)
}

/// Low numbers are often copied from inside a container, where they name the server.
fn unsupported(pid: u32, what: String, hidden: &Hidden) -> Failure {
    match hidden.inside.first() {
        Some(outer) => Failure::new(
            Code::Unsupported,
            format!("{what}; inside a container, {pid} is the PID of a server's process that out here is {outer}"),
            format!("use -p {outer}"),
        ),
        None => Failure::new(Code::Unsupported, what, LIST),
    }
}

/// A shell, `tini` or a supervisor, with servers below it.
pub fn servers_below(pid: u32, name: &str, servers: &[u32]) -> Failure {
    // A screenful; `ls` has them all.
    let shown: Vec<String> = servers.iter().take(10).map(u32::to_string).collect();
    let fix = match servers {
        [one] => format!("use -p {one}"),
        _ => format!("name one of them with -p; {LIST}"),
    };
    let count = if servers.len() == 1 { "one runs".to_owned() } else { format!("{} run", servers.len()) };
    Failure::new(
        Code::Unsupported,
        format!(
            "process {pid} (`{name}`) is not an inference server itself, but {count} below it: {}",
            shown.join(", ")
        ),
        fix,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_as_users_type_them() {
        assert_eq!(parse_pid("4711"), Ok(4711));
        assert_eq!(parse_pid(" 1 "), Ok(1));
        for text in ["0", "-5", "4194305", "99999999999999999999", "vllm", "", "1.5"] {
            assert!(parse_pid(text).is_err_and(|why| why.contains("inferspan ls")), "{text}");
        }
    }

    #[test]
    fn the_likeliest_explanation_wins() {
        let all = Hidden { hidepid: Some("2".into()), inner_namespace: true, inside: vec![900, 901] };
        let failure = no_process(7, &all);
        assert_eq!((failure.code, failure.fix.as_str()), (Code::NoTarget, "use -p 900"));
        let failure = no_process(7, &Hidden { inside: vec![], ..all.clone() });
        assert!(failure.what.contains("hidepid=2") && failure.fix.contains("CAP_SYS_PTRACE"));
        let failure = no_process(7, &Hidden { inner_namespace: true, ..Hidden::default() });
        assert!(failure.fix.contains("hostPID"));
        let failure = no_process(7, &Hidden::default());
        assert!(failure.what.contains("no process 7") && failure.fix.contains("inferspan ls"));
    }

    #[test]
    fn codes_are_those_that_scripts_rely_on() {
        let hidden = Hidden::default();
        for (failure, code) in [
            (no_pid(0), 2),
            (no_process(7, &hidden), 3),
            (thread(8, 7, "x"), 3),
            (zombie(7, "x"), 3),
            (gone(7), 3),
            (reused(7), 3),
            (forbidden(7, "x"), 4),
            (kernel_thread(2, "kthreadd", &hidden), 5),
            (no_server(7, "x", "a shell", &hidden), 5),
            (servers_below(1, "init", &[4, 5]), 5),
            (servers_below(1, "init", &[4]), 5),
        ] {
            assert_eq!(failure.code as u8, code, "{failure}");
            assert!(!failure.what.is_empty() && !failure.fix.is_empty());
        }
    }
}
