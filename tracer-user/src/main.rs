//! The `inferspan` binary: parses the command line, runs a verb, turns errors into exit codes.

use std::process::ExitCode;

use clap::Parser as _;
use inferspan::cli::{self, Cli};
use inferspan::console;
use inferspan::exit::{Code, Failure};
use inferspan::sanitise;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let ended = cli::run(cli);
    console::clear();
    match ended {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => {
            let code = error.downcast_ref::<Failure>().map_or(Code::Finding, |failure| failure.code);
            console::say(&format!("inferspan: {}", sanitise::lines(&format!("{error:#}"))));
            ExitCode::from(code as u8)
        }
    }
}
