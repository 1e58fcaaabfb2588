//! `docs/overhead/`: raw measurements as JSON, one file a variant, and the table that is made of them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::statistics::{median, quantile};

/// (what it is, where it is in a run, factor to the unit)
const MEASURES: [(&str, &str, f64); 9] = [
    ("CPU of the API server, ms per 1,000 tokens", "/cpu_ms_per_1000_tokens/api", 1.0),
    ("CPU of the engine, ms per 1,000 tokens", "/cpu_ms_per_1000_tokens/engine", 1.0),
    ("CPU of the worker, ms per 1,000 tokens", "/cpu_ms_per_1000_tokens/worker", 1.0),
    ("CPU of the server in all, ms per 1,000 tokens", "/cpu_ms_per_1000_tokens/server", 1.0),
    ("CPU of inferspan, ms per 1,000 tokens", "/cpu_ms_per_1000_tokens/inferspan", 1.0),
    ("CPU of who looks at the page, ms per 1,000 tokens", "/cpu_ms_per_1000_tokens/viewer", 1.0),
    ("Tokens a second", "/tokens_per_second", 1.0),
    ("Time between tokens, p50, ms", "/itl_p50", 1e3),
    ("Time between tokens, p99, ms", "/itl_p99", 1e3),
];

/// The machine that measures.
pub(super) fn machine() -> Result<Value> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let cpus = read("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let memory = read("/proc/meminfo")?;
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let memory = memory.and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    Ok(json!({
        "cpu": model.trim_start_matches(['\t', ' ', ':']),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory_gib": (memory / f64::from(1 << 20)).round(),
        "kernel": read("/proc/sys/kernel/osrelease")?.trim(),
    }))
}

/// Keeps the raw numbers of a variant.
pub(super) fn write(folder: &Path, variant: &str, report: &Value) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{variant}.json"));
    let text = serde_json::to_string_pretty(report).context("cannot write JSON")? + "\n";
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Makes the table of all variants that are in the folder, writes it there as README.md, and returns it.
pub(super) fn render(folder: &Path) -> Result<String> {
    let mut text = "# What tracing costs the server\n\n\
        Made by `cargo xtask bench vllm`; do not edit. The same load runs without and with what is measured in turns, and each \
        run with is compared with the run without beside it (ratio 1.02: 2 % more). `min … max` and the interquartile range \
        are of these ratios. CPU time is the kernel's, of all threads of the processes.\n\n\
        What a launch costs: [launch.md](launch.md).\n"
        .to_owned();
    let mut files: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    for path in files {
        let raw = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let report = serde_json::from_str(&raw).with_context(|| format!("{} is no JSON", path.display()))?;
        section(&mut text, &report);
    }
    let text = wrapped(&text);
    let path = folder.join("README.md");
    fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(text)
}

/// Columns of a line of prose in `docs/`.
const WIDTH: usize = 140;

/// With every line of prose broken where it is too long. Rows of tables stay whole.
fn wrapped(text: &str) -> String {
    let mut wrapped = String::new();
    for line in text.lines() {
        if line.starts_with('|') {
            wrapped.push_str(line);
        } else {
            let mut width = 0;
            for word in line.split(' ') {
                let columns = word.chars().count();
                if width > 0 && width + 1 + columns > WIDTH {
                    let indent = if line.starts_with("- ") { "  " } else { "" };
                    wrapped.push('\n');
                    wrapped.push_str(indent);
                    width = indent.len();
                } else if width > 0 {
                    wrapped.push(' ');
                    width += 1;
                }
                wrapped.push_str(word);
                width += columns;
            }
        }
        wrapped.push('\n');
    }
    wrapped
}

/// One variant. A string takes every byte, here and below.
fn section(text: &mut String, report: &Value) {
    let field = |name: &str| report[name].as_str().unwrap_or("?");
    let machine = &report["machine"];
    let pairs = report["pairs"].as_array().map_or(&[][..], Vec::as_slice);
    let _ = write!(
        text,
        "\n## {}\n\n`{}`: {} pairs of runs, without and with {}.\n\n- Load: {}\n- Server: {}\n- Machine: {}, {} cores, {} GiB, Linux {}\n\n\
         | | without | with | ratio | min … max | IQR |\n|---|---|---|---|---|---|\n",
        field("variant"),
        field("command"),
        pairs.len(),
        field("with"),
        field("load"),
        field("server"),
        machine["cpu"].as_str().unwrap_or("?"),
        machine["cores"],
        machine["memory_gib"],
        machine["kernel"].as_str().unwrap_or("?"),
    );
    for (name, pointer, factor) in MEASURES {
        let values = |side: &str| -> Vec<f64> {
            pairs.iter().filter_map(|pair| Some(pair[side].pointer(pointer)?.as_f64()? * factor)).collect()
        };
        let (without, with) = (values("without"), values("with"));
        if with.is_empty() {
            continue;
        }
        if without.len() < with.len() {
            let _ = writeln!(text, "| {name} | | {:.2} | | | |", median(&with));
            continue;
        }
        let ratios: Vec<f64> = with.iter().zip(&without).map(|(with, without)| with / without).collect();
        let spread = [0.0, 1.0, 0.25, 0.75].map(|share| quantile(&ratios, share));
        let _ = writeln!(
            text,
            "| {name} | {:.2} | {:.2} | {:.3} | {:.3} … {:.3} | {:.3} … {:.3} |",
            median(&without),
            median(&with),
            median(&ratios),
            spread[0],
            spread[1],
            spread[2],
            spread[3]
        );
    }
    programs(text, report);
}

/// What each BPF program took in the run in which the kernel counted.
fn programs(text: &mut String, report: &Value) {
    let Some(programs) = report["programs"].as_array() else { return };
    let number = |value: &Value, field: &str| value[field].as_f64().unwrap_or(0.0);
    let pairs = report["pairs"].as_array().map_or(&[][..], Vec::as_slice);
    let server: Vec<f64> =
        pairs.iter().filter_map(|pair| pair["without"].pointer("/cpu_ms_per_1000_tokens/server")?.as_f64()).collect();
    let server = median(&server);
    let mut programs: Vec<&Value> =
        programs.iter().filter(|program| number(program, "runs_per_1000_tokens") > 0.0).collect();
    programs.sort_by(|a, b| number(b, "ns_per_1000_tokens").total_cmp(&number(a, "ns_per_1000_tokens")));
    text.push_str(
        "\nWhat each BPF program takes, in a run of its own in which the kernel counts it (`bpf_stats_enabled`): of all processes of \
         the machine, clients and tracer among them, and without the kernel's own way to a program.\n\n\
         | program | runs per 1,000 tokens | ns a run | ms per 1,000 tokens | of the server's CPU |\n|---|---|---|---|---|\n",
    );
    for program in programs {
        let (runs, nanos) = (number(program, "runs_per_1000_tokens"), number(program, "ns_per_1000_tokens"));
        let _ = writeln!(
            text,
            "| `{}` | {runs:.1} | {:.0} | {:.3} | {:.2} % |",
            program["name"].as_str().unwrap_or("?"),
            nanos / runs,
            nanos / 1e6,
            nanos / 1e4 / server.max(f64::MIN_POSITIVE)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_wrapped_and_tables_are_not() {
        let (prose, row) = (format!("- {}", "word ".repeat(60)), format!("| {} |", "cell ".repeat(60)));
        let text = wrapped(&format!("{prose}\n{row}\n"));
        let (prose, row): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| !line.starts_with('|'));
        assert_eq!(row.len(), 1);
        assert!(prose.len() == 3 && prose.iter().all(|line| line.chars().count() <= WIDTH), "{prose:?}");
        assert!(prose[1].starts_with("  word"), "{prose:?}");
    }

    #[test]
    fn ratios_are_of_neighbours_and_programs_are_shares_of_the_server() {
        let run = |api: f64, rate: f64| json!({"cpu_ms_per_1000_tokens": {"api": api, "server": 10.0 * api}, "tokens_per_second": rate});
        let mut with = run(4.4, 100.0);
        with["cpu_ms_per_1000_tokens"]["inferspan"] = 0.5.into();
        let report = json!({"variant": "all", "pairs": [
            {"without": run(2.0, 100.0), "with": run(2.2, 99.0)},
            {"without": run(4.0, 100.0), "with": with},
        ], "programs": [
            {"name": "walk", "runs_per_1000_tokens": 0.0, "ns_per_1000_tokens": 0.0},
            {"name": "sys_exit", "runs_per_1000_tokens": 2000.0, "ns_per_1000_tokens": 3e5},
        ]});
        let mut text = String::new();
        section(&mut text, &report);
        assert!(text.contains("| CPU of the API server, ms per 1,000 tokens | 3.00 | 3.30 | 1.100 |"), "{text}");
        assert!(text.contains("| CPU of inferspan, ms per 1,000 tokens | | 0.50 | | | |"), "{text}");
        assert!(text.contains("| `sys_exit` | 2000.0 | 150 | 0.300 | 1.00 % |"), "{text}");
        assert!(!text.contains("walk"), "{text}");
        assert!(text.contains("| Tokens a second | 100.00 | 99.50 | 0.995 |"), "{text}");
    }
}
