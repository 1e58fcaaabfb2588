//! The servers that are traced: our small engine, or the real vLLM on CPU.
//!
//! Enters: a program, or what is installed. Leaves: a server that answers, its address and the pid to attach to. The whole
//! process group goes with it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::http;
use crate::installed::Vllm;
use crate::process::Process;
use crate::wait::{Interrupt, wait_for};

/// Our engine starts in well under a second.
const DEMO_LIMIT: Duration = Duration::from_secs(30);
/// A first start reads 6 GB of Python and shared objects: 116 s on an idle machine of two cores, more of two engines, and
/// several times that when the machine has other work.
const VLLM_LIMIT: Duration = Duration::from_mins(10);
/// The name that vLLM serves its model under.
pub const MODEL: &str = "tiny";

#[derive(Debug)]
pub struct Server {
    pub process: Process,
    /// The process to attach to, as the server says.
    pub pid: u32,
    /// `http://host:port`
    pub url: String,
    pub model: String,
    pub name: &'static str,
}

impl Server {
    /// `command` starts `demo-engine`, perhaps through another program.
    pub fn start_demo(command: &mut Command, folder: &Path, interrupt: &Interrupt) -> Result<Self> {
        let announcement = folder.join("server.json");
        // That of another server in this folder would be taken for this one's.
        let _ = fs::remove_file(&announcement);
        command.arg("--announce").arg(&announcement);
        let mut process = Process::start("server", command, folder)?;
        let said: Value = wait_for("the demo server", DEMO_LIMIT, interrupt, &mut [&mut process], || {
            // Absent or half written: not yet.
            Ok(fs::read(&announcement).ok().and_then(|text| serde_json::from_slice(&text).ok()))
        })?;
        let field =
            |name: &str| said[name].as_str().with_context(|| format!("the demo server announced no `{name}`: {said}"));
        let pid = said["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        Ok(Self {
            pid: pid.with_context(|| format!("the demo server announced no `pid`: {said}"))?,
            url: field("http")?.to_owned(),
            model: field("model")?.to_owned(),
            process,
            name: "demo server",
        })
    }

    /// Starts the real vLLM with these further arguments and variables; what comes later on the command line or in the
    /// environment counts.
    pub fn start_vllm(
        installed: &Vllm,
        folder: &Path,
        interrupt: &Interrupt,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let [port] = http::free_ports()?;
        let mut command = Command::new(installed.venv.join("bin/vllm"));
        command
            .arg("serve")
            .arg(&installed.model)
            .args(["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--dtype", "bfloat16", "--max-model-len", "512", "--max-num-seqs", "8", "--enforce-eager"])
            .args(arguments)
            // Nothing may be looked up or reported over the network; 1 GiB of KV cache is plenty for this model.
            .envs([("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "1"), ("VLLM_NO_USAGE_STATS", "1")])
            .envs([("DO_NOT_TRACK", "1"), ("VLLM_CPU_KVCACHE_SPACE", "1")])
            .envs(environment.iter().copied());
        let mut process = Process::start("server", &mut command, folder)?;
        let url = format!("http://127.0.0.1:{port}");
        let health = format!("{url}/health");
        wait_for("vLLM (one to two minutes)", VLLM_LIMIT, interrupt, &mut [&mut process], || {
            Ok(http::answers(&health).then_some(()))
        })?;
        Ok(Self { pid: process.pid(), process, url, model: MODEL.to_owned(), name: "vLLM" })
    }
}
