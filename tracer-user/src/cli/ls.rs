//! `inferspan ls`: the inference servers on this host.
//!
//! A table on stdout, or `--json` (`inferspan.ls/1`). Nothing found is no error: an empty list, and a hint on stderr.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{print, print_json};
use crate::discover::named::{SHORT_ID, engine_shown};
use crate::discover::privilege::{Privileges, Traceable, kernel, traceable};
use crate::discover::{self, ServerProcess, ServerProcesses, role_name};
use crate::engine::ENGINES;
use crate::exit::Code;
use crate::gpu::{self, Gpu, Gpus};
use crate::input::Role;
use crate::sanitise;

const HEADER: [&str; 7] = ["PID", "ENGINE", "MODEL", "PROCESSES", "GPUS", "CONTAINER", "TRACEABLE"];

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON (schema `inferspan.ls/1`)
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    let privileges = Privileges::own();
    let servers = discover::servers();
    // Without a server nobody asks.
    let gpus = if servers.is_empty() { None } else { gpu::read().ok() };
    if args.json {
        print_json(&document(&servers, gpus.as_ref(), privileges))?;
    } else if !servers.is_empty() {
        print(&table(&servers, gpus.as_ref(), privileges))?;
    }
    if servers.is_empty() {
        let known = ENGINES.map(|engine| match engine.oldest() {
            Some((major, minor)) => format!("{} {major}.{minor} or later", engine.name()),
            None => engine.name().to_owned(),
        });
        eprintln!(
            "inferspan: no inference server found ({}). Servers of other users and containers are seen as root, in the host's pid namespace.",
            known.join(", ")
        );
    }
    Ok(Code::Ok)
}

fn document(servers: &[ServerProcesses], gpus: Option<&Gpus>, privileges: Privileges) -> Value {
    let servers: Vec<Value> = servers.iter().map(|server| describe(server, gpus, privileges)).collect();
    json!({ "schema": "inferspan.ls/1", "servers": servers })
}

fn describe(found: &ServerProcesses, gpus: Option<&Gpus>, privileges: Privileges) -> Value {
    let server = &found.server;
    let (traceable, reasons) = match traceable(found, privileges, kernel()) {
        Traceable::Yes => ("yes", Vec::new()),
        Traceable::Partly(reasons) => ("partly", reasons),
        Traceable::No(reasons) => ("no", reasons),
    };
    json!({
        "pid": server.pid,
        "start_ticks": server.start_ticks,
        "service": server.service,
        "server": server.instance(),
        "engine": server.engine,
        "engine_version": server.engine_version,
        "model": known(&server.model),
        "container_id": server.container_id,
        "gpus": found.gpus,
        "gpu_facts": gpus.map(|gpus| used_by(found, gpus).map(facts).collect::<Vec<_>>()),
        "tls": found.tls,
        "traceable": traceable,
        "reasons": reasons,
        "processes": found.processes.iter().map(process).collect::<Vec<_>>(),
    })
}

/// The GPUs that a server uses, as the driver tells them.
fn used_by<'a>(found: &ServerProcesses, gpus: &'a Gpus) -> impl Iterator<Item = &'a Gpu> {
    let processes: Vec<u32> = found.processes.iter().map(|process| process.pid).collect();
    gpus.all.iter().filter(move |gpu| gpu.is_used_by(&processes, &found.gpus))
}

fn facts(gpu: &Gpu) -> Value {
    json!({
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "memory_used_bytes": gpu.memory_used_bytes,
        "memory_total_bytes": gpu.memory_total_bytes,
        "utilization": { "gpu_percent": gpu.busy_percent, "memory_percent": gpu.memory_busy_percent },
        "clocks_mhz": { "sm": gpu.sm_clock_mhz, "memory": gpu.memory_clock_mhz },
        "temperature_celsius": gpu.temperature_celsius,
        "power_watts": gpu.power_milliwatts.map(|milliwatts| f64::from(milliwatts) / 1e3),
        "throttled": gpu.throttled.as_ref().map(|all| all.iter().map(|reason| reason.name()).collect::<Vec<_>>()),
        "ecc_errors": { "corrected": gpu.ecc_corrected, "uncorrected": gpu.ecc_uncorrected },
        "xid_errors": gpu.xids.as_ref().map(|xids| {
            xids.iter().map(|(number, count)| (number.to_string(), json!(count))).collect::<serde_json::Map<_, _>>()
        }),
        "processes": gpu.processes,
    })
}

fn process(process: &ServerProcess) -> Value {
    let listening: Vec<String> = process.listening().iter().map(ToString::to_string).collect();
    let tokenizers: Vec<Value> = process
        .tokenizers
        .iter()
        .map(|file| json!({ "path": discover::printable_path(&file.path), "inode": file.inode, "deleted": file.deleted }))
        .collect();
    json!({
        "pid": process.pid,
        "parent": process.parent,
        "namespace_pid": process.namespace_pid,
        "role": role_name(process.role),
        "index": process.index,
        "rank": known(&process.rank),
        "comm": process.comm,
        "listening": process.readable.then_some(listening),
        "tokenizers": process.readable.then_some(tokenizers),
    })
}

fn known(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn table(servers: &[ServerProcesses], gpus: Option<&Gpus>, privileges: Privileges) -> String {
    let mut rows: Vec<[String; 7]> = vec![HEADER.map(str::to_owned)];
    let safe = |cell: String| sanitise::sanitise(&cell, cell.len()).into_owned();
    rows.extend(servers.iter().map(|server| row(server, gpus, privileges).map(safe)));
    // The last column is not padded.
    let widths: Vec<usize> = (0..HEADER.len() - 1)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
        .collect();
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        text.push_str(&row[HEADER.len() - 1]);
        text.push('\n');
    }
    text
}

fn row(found: &ServerProcesses, gpus: Option<&Gpus>, privileges: Privileges) -> [String; 7] {
    let server = &found.server;
    let dash = |text: Option<&str>| text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned();
    let container = server.container_id.as_deref().map(|id| id.get(..SHORT_ID).unwrap_or(id));
    let traceable = match traceable(found, privileges, kernel()) {
        Traceable::Yes => "yes".to_owned(),
        Traceable::Partly(reasons) => format!("partly: {}", reasons.join("; ")),
        Traceable::No(reasons) => format!("no: {}", reasons.join("; ")),
    };
    [
        server.pid.to_string(),
        engine_shown(server),
        dash(Some(&server.model)),
        roles(&found.processes),
        dash(Some(&devices(found, gpus))),
        dash(container),
        traceable,
    ]
}

/// `2x NVIDIA H100 80GB HBM3 (0,1)`; the device files that are held where the driver does not say.
fn devices(found: &ServerProcesses, gpus: Option<&Gpus>) -> String {
    let mut kinds: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for gpu in gpus.into_iter().flat_map(|gpus| used_by(found, gpus)) {
        kinds.entry(gpu.name.as_deref().unwrap_or("GPU")).or_default().push(gpu.index.to_string());
    }
    if kinds.is_empty() {
        return found.gpus.join(",");
    }
    let kinds: Vec<String> =
        kinds.iter().map(|(name, which)| format!("{}x {name} ({})", which.len(), which.join(","))).collect();
    kinds.join(", ")
}

/// `1 api, 2 engines, 4 workers`; what carries nothing is not counted.
fn roles(processes: &[ServerProcess]) -> String {
    let counted: Vec<String> = [Role::Api, Role::Engine, Role::Worker, Role::Coordinator]
        .into_iter()
        .filter_map(|role| {
            let count = processes.iter().filter(|process| process.role == role).count();
            let plural = if count > 1 { "s" } else { "" };
            (count > 0).then(|| format!("{count} {}{plural}", role_name(role)))
        })
        .collect();
    counted.join(", ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::input::Server;

    fn process(pid: u32, role: Role) -> ServerProcess {
        ServerProcess {
            pid,
            parent: 1,
            start_ticks: 5,
            namespace_pid: None,
            role,
            index: Some(0),
            rank: String::new(),
            comm: "vllm".into(),
            tcp: vec![],
            unix: vec![],
            tokenizers: vec![],
            network_namespace: None,
            clock_offset_ns: 0,
            readable: true,
        }
    }

    fn found() -> ServerProcesses {
        let server = Server {
            service: "vllm".into(),
            model: "tiny".into(),
            engine: "vllm".into(),
            engine_version: None,
            container_id: Some("4c01db0b339c4f1b".into()),
            pid: 100,
            start_ticks: 5,
        };
        let processes = vec![
            process(100, Role::Api),
            process(110, Role::Other),
            process(111, Role::Engine),
            process(112, Role::Engine),
        ];
        ServerProcesses {
            server: Arc::new(server),
            processes,
            gpus: vec!["nvidia0".into(), "nvidia1".into()],
            tls: true,
        }
    }

    #[test]
    fn the_table_has_one_aligned_line_a_server() {
        let text = table(&[found()], None, Privileges(u64::MAX));
        let expected = "\
PID  ENGINE  MODEL  PROCESSES         GPUS             CONTAINER     TRACEABLE
100  vllm ?  tiny   1 api, 2 engines  nvidia0,nvidia1  4c01db0b339c  partly: no HTTP side: TLS; no tokenizer times: no known tokenizer library
";
        assert_eq!(text, expected);
    }

    #[test]
    fn gpus_are_named_where_the_driver_tells_them_and_only_a_servers_own() {
        let gpu = |index, process| Gpu {
            index,
            name: Some("NVIDIA H100".into()),
            processes: Some(vec![process]),
            ..Gpu::default()
        };
        let gpus = Gpus { driver: None, all: vec![gpu(0, 111), gpu(1, 7), gpu(2, 112)] };
        assert_eq!(devices(&found(), Some(&gpus)), "2x NVIDIA H100 (0,2)");
        assert_eq!(devices(&found(), Some(&Gpus::default())), "nvidia0,nvidia1");
        let document = document(&[found()], Some(&gpus), Privileges(0));
        let facts = document["servers"][0]["gpu_facts"].as_array().unwrap();
        assert_eq!(facts.iter().map(|gpu| gpu["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(facts[0]["ecc_errors"]["corrected"], Value::Null, "not known is not none");
    }

    #[test]
    fn the_document_says_its_schema_and_unknown_is_null() {
        let document = document(&[found()], None, Privileges(0));
        assert_eq!(document["schema"], "inferspan.ls/1");
        let server = &document["servers"][0];
        assert_eq!((&server["engine_version"], &server["traceable"]), (&Value::Null, &json!("no")));
        assert_eq!(server["reasons"][0], "run as root, or with CAP_BPF, CAP_PERFMON");
        assert_eq!(server["processes"][2]["role"], "engine");
        assert_eq!(server["gpu_facts"], Value::Null, "nobody says");
    }
}
