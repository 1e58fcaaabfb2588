//! `cargo xtask lint`: formatting, clippy with warnings as errors, licences and origins of the dependencies.

use std::process::Command;

use anyhow::Result;

use crate::{setup, shell};

pub(crate) fn main() -> Result<()> {
    ensure_component("rustfmt", "cargo-fmt")?;
    ensure_component("clippy", "cargo-clippy")?;
    shell::step("cargo fmt --check", || shell::run(cargo().args(["fmt", "--all", "--check"])))?;
    shell::step("cargo clippy", || {
        shell::run(cargo().args([
            "clippy",
            "--quiet",
            "--locked",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    })?;
    let deny = setup::deny::ensure()?;
    // `advisories` is left out: its database is a git repository, which a machine that reaches only the crate registry
    // cannot fetch. Where it can be reached: `cargo deny check advisories`.
    shell::step("cargo deny check licenses bans sources (not advisories: its database needs git access)", || {
        let mut command = Command::new(&deny);
        command.args([
            "--locked",
            "--log-level",
            "error",
            "check",
            "--hide-inclusion-graph",
            "licenses",
            "bans",
            "sources",
        ]);
        shell::run(command.current_dir(shell::root()))
    })
}

/// Adds a rustup component that is not in rustup's minimal profile.
fn ensure_component(component: &str, program: &str) -> Result<()> {
    let runs = shell::output(cargo().args([program.trim_start_matches("cargo-"), "--version"])).is_ok();
    if runs { Ok(()) } else { shell::run(Command::new("rustup").args(["component", "add", component])) }
}

fn cargo() -> Command {
    let mut command = shell::cargo();
    command.current_dir(shell::root());
    command
}
