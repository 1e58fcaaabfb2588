//! One port for metrics, wherever a user reads of one: README, help, and what `deploy/` scrapes.

#![allow(clippy::unwrap_used, reason = "a test that meets a surprise fails")]

use std::collections::BTreeSet;
use std::fs;

use clap::CommandFactory as _;
use inferspan::cli::Cli;
use inferspan::export::prometheus::server::PORT;
use inferspan_tests::signals::repository;

fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap()
}

/// What stands behind `--metrics` wherever a command line is shown.
fn shown(text: &str) -> BTreeSet<String> {
    let behind = text.split("--metrics ").skip(1).filter_map(|rest| rest.split([' ', '`', '\n']).next());
    behind.filter(|word| word.contains(|c: char| c.is_ascii_digit())).map(str::to_owned).collect()
}

#[test]
fn the_readme_the_help_and_what_prometheus_scrapes_name_the_same_port() {
    assert_eq!(shown(&read("README.md")), BTreeSet::from([PORT.to_string()]));

    let targets: serde_json::Value = serde_json::from_str(&read("deploy/prometheus/targets/inferspan.json")).unwrap();
    assert_eq!(targets[0]["targets"], serde_json::json!([format!("127.0.0.1:{PORT}")]));
    assert_eq!(shown(&read("deploy/prometheus/prometheus.yml")), BTreeSet::from([PORT.to_string()]));

    for verb in ["attach", "record", "replay"] {
        let cli = Cli::command();
        let verb = cli.find_subcommand(verb).unwrap();
        let metrics = verb.get_arguments().find(|argument| argument.get_long() == Some("metrics")).unwrap();
        assert!(metrics.get_help().unwrap().to_string().contains(&PORT.to_string()), "{}", verb.get_name());
    }
}
