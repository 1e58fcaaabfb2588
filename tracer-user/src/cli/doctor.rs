//! `inferspan doctor`: what tracing needs, on this host and in one server.
//!
//! Every check says OK, WARN or FAIL, what it saw, and the fix. The order is fixed. Exit code 1 when anything fails.
//! `host`, `gpu`, `target` and `cuda` look; what they conclude from what they saw is in pure functions of their own.

mod cuda;
mod gpu;
mod host;
mod target;

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use serde_json::{Value, json};

pub(super) use self::cuda::memory_hooks;
use super::ls::print;
use crate::discover::failure::parse_pid;
use crate::exit::Code;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also check this server, by any of its processes
    #[arg(short, long, value_name = "PID", value_parser = parse_pid, allow_negative_numbers = true)]
    pub pid: Option<u32>,
    /// Print JSON (schema `inferspan.doctor/1`)
    #[arg(long)]
    pub json: bool,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    pub detail: String,
    /// What to do; only where something is to be done.
    pub fix: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    Warn,
    Fail,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }

    /// SGR colour: green, yellow, red.
    fn colour(self) -> &'static str {
        match self {
            Self::Ok => "32",
            Self::Warn => "33",
            Self::Fail => "31",
        }
    }
}

impl Check {
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), fix: None }
    }

    pub fn warn(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, detail: detail.into(), fix: Some(fix.into()) }
    }

    pub fn fail(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, detail: detail.into(), fix: Some(fix.into()) }
    }
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    let mut checks = host::checks();
    checks.push(gpu::check());
    if let Some(pid) = args.pid {
        checks.extend(target::checks(pid));
    }
    if args.json {
        print(&format!("{:#}\n", document(&checks)))?;
    } else {
        let colour =
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        print(&text(&checks, colour))?;
        eprintln!("{}", summary(&checks));
    }
    let failed = checks.iter().any(|check| check.status == Status::Fail);
    Ok(if failed { Code::Finding } else { Code::Ok })
}

fn document(checks: &[Check]) -> Value {
    let checks: Vec<Value> = checks
        .iter()
        .map(|check| json!({ "name": check.name, "status": check.status.name(), "detail": check.detail, "fix": check.fix }))
        .collect();
    json!({ "schema": "inferspan.doctor/1", "checks": checks })
}

fn text(checks: &[Check], colour: bool) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Check { name, status, detail, fix } in checks {
        let word = format!("{:4}", status.name());
        let word = if colour { format!("\x1b[{}m{word}\x1b[0m", status.colour()) } else { word };
        // A verifier's log follows the first line; `--json` has it whole.
        let _ = writeln!(text, "{word}  {name:width$}  {}", detail.lines().next().unwrap_or_default());
        if let Some(fix) = fix {
            let _ = writeln!(text, "{:width$}  fix: {fix}", "", width = width + 6);
        }
    }
    text
}

fn summary(checks: &[Check]) -> String {
    let count = |status: Status| checks.iter().filter(|check| check.status == status).count();
    let (warnings, failures) = (count(Status::Warn), count(Status::Fail));
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let checked = plural(checks.len(), "check");
    match (warnings, failures) {
        (0, 0) => format!("inferspan: {checked}, all OK"),
        _ => format!("inferspan: {checked}: {}, {}", plural(warnings, "warning"), plural(failures, "failure")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Vec<Check> {
        vec![
            Check::ok("kernel", "6.18.0"),
            Check::warn("btf", "absent", "update"),
            Check::fail("capabilities", "none", "sudo"),
        ]
    }

    #[test]
    fn the_text_is_aligned_and_plain_without_a_terminal() {
        let expected = "\
OK    kernel        6.18.0
WARN  btf           absent
                    fix: update
FAIL  capabilities  none
                    fix: sudo
";
        assert_eq!(text(&three(), false), expected);
        assert_eq!(summary(&three()), "inferspan: 3 checks: 1 warning, 1 failure");
        assert_eq!(summary(&three()[..1]), "inferspan: 1 check, all OK");
    }

    #[test]
    fn colour_is_only_on_the_word() {
        assert!(text(&three(), true).starts_with("\x1b[32mOK  \x1b[0m  kernel"));
    }

    #[test]
    fn the_document_says_its_schema_and_no_fix_is_null() {
        let document = document(&three());
        assert_eq!(document["schema"], "inferspan.doctor/1");
        assert_eq!(document["checks"][0], json!({ "name": "kernel", "status": "OK", "detail": "6.18.0", "fix": null }));
        assert_eq!(document["checks"][2]["fix"], "sudo");
    }
}
