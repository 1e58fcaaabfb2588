//! The server that the demo traces: our small engine, or the real vLLM on CPU.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::http;
use super::process::{Interrupt, Process, wait_for};
use crate::setup;

/// Our engine starts in well under a second.
const DEMO_LIMIT: Duration = Duration::from_secs(30);
/// vLLM takes one to two minutes on two cores, four with a cold disk.
const VLLM_LIMIT: Duration = Duration::from_mins(7);
/// The name that vLLM serves the tiny model under.
const MODEL: &str = "tiny";

pub struct Server {
    pub process: Process,
    /// The process to attach to.
    pub pid: u32,
    pub url: String,
    pub model: String,
    pub name: &'static str,
}

impl Server {
    /// Starts `program`, the demo's own engine.
    pub fn start_demo(program: &Path, folder: &Path, interrupt: &Interrupt) -> Result<Self> {
        let announcement = folder.join("server.json");
        let mut command = Command::new(program);
        // The name on the command line is how a real server is told its model; without it metrics begin unlabelled.
        command.args(["--port", "0", "--served-model-name", "demo", "--announce"]).arg(&announcement);
        // Little memory and small batches, so that there are preemptions and chunked prefills to see.
        command.args(["--blocks", "32", "--max-num-batched-tokens", "128"]);
        let mut process = Process::start("server", &mut command, folder)?;
        let said: Value = wait_for("the demo server", DEMO_LIMIT, interrupt, &mut [&mut process], || {
            // Absent or half written: not yet.
            Ok(fs::read(&announcement).ok().and_then(|text| serde_json::from_slice(&text).ok()))
        })?;
        let field =
            |name: &str| said[name].as_str().with_context(|| format!("the demo server announced no `{name}`: {said}"));
        let pid = said["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        Ok(Self {
            pid: pid.with_context(|| format!("the demo server announced no `pid`: {said}"))?,
            url: format!("http://{}", field("http")?),
            model: field("model")?.to_owned(),
            process,
            name: "demo server",
        })
    }

    /// Starts the real vLLM with the tiny model, and with these further arguments.
    pub fn start_vllm(folder: &Path, interrupt: &Interrupt, arguments: &[&str]) -> Result<Self> {
        let vllm = setup::vllm::ensure()?;
        let [port] = http::free_ports()?;
        let mut command = Command::new(vllm.venv.join("bin/vllm"));
        command
            .arg("serve")
            .arg(&vllm.model)
            .args(["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--dtype", "bfloat16", "--max-model-len", "512", "--max-num-seqs", "8", "--enforce-eager"])
            .args(arguments)
            // Nothing may be looked up or reported over the network; 1 GiB of KV cache is plenty for this model.
            .envs([("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "1"), ("VLLM_NO_USAGE_STATS", "1")])
            .envs([("DO_NOT_TRACK", "1"), ("VLLM_CPU_KVCACHE_SPACE", "1")]);
        let mut process = Process::start("server", &mut command, folder)?;
        let url = format!("http://127.0.0.1:{port}");
        let health = format!("{url}/health");
        wait_for("vLLM (one to two minutes)", VLLM_LIMIT, interrupt, &mut [&mut process], || {
            Ok(http::answers(&health).then_some(()))
        })?;
        Ok(Self { pid: process.pid(), process, url, model: MODEL.to_owned(), name: "vLLM" })
    }
}
