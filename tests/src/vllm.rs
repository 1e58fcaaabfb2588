//! Starts the real vLLM 0.32 on CPU, by the recipe of `cargo xtask setup`.
//!
//! Enters: `INFERSPAN_VLLM_VENV` (a virtual environment with vLLM in it) and `INFERSPAN_VLLM_MODEL` (the model's folder).
//! Leaves: a served URL and a pid. The whole process group goes when the fixture is dropped; what the server said is kept
//! in a file and shown when it does not come up.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::judge::Target;
use crate::traffic::Client;
use inferspan_demo_engine::sys;

/// A first start reads 6 GB of Python and shared objects: 116 s on an idle machine of two cores, more of two engines, and
/// several times that when the machine has other work.
const START: Duration = Duration::from_mins(10);
/// Name under which the model is served.
pub const MODEL: &str = "tiny";

/// A running server.
#[derive(Debug)]
pub struct Vllm {
    child: Child,
    url: String,
    log: PathBuf,
}

/// Where the environment says that vLLM and its model are.
#[derive(Debug, Clone)]
pub struct Installed {
    pub venv: PathBuf,
    pub model: PathBuf,
}

impl Installed {
    /// `None`, said loudly, when the environment names no vLLM.
    pub fn from_env() -> Option<Self> {
        let find = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists());
        if let (Some(venv), Some(model)) = (find("INFERSPAN_VLLM_VENV"), find("INFERSPAN_VLLM_MODEL")) {
            Some(Self { venv, model })
        } else {
            eprintln!(
                "SKIPPED: INFERSPAN_VLLM_VENV and INFERSPAN_VLLM_MODEL name no vLLM; `cargo xtask test` sets them"
            );
            None
        }
    }
}

impl Vllm {
    /// Starts a server with these further arguments and waits until it answers.
    pub fn start(installed: &Installed, arguments: &[&str]) -> io::Result<Self> {
        Self::start_with(installed, arguments, &[])
    }

    /// And with these further variables. What comes later on the command line or in the environment counts.
    pub fn start_with(
        installed: &Installed,
        arguments: &[&str],
        environment: &[(&'static str, &str)],
    ) -> io::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = std::env::temp_dir().join(format!("inferspan-vllm-{}-{port}.log", std::process::id()));
        let output = File::create(&log)?;
        let child = Command::new(installed.venv.join("bin/vllm"))
            .arg("serve")
            .arg(&installed.model)
            .args(["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--dtype", "bfloat16", "--max-model-len", "512", "--max-num-seqs", "8", "--enforce-eager"])
            .args(arguments)
            .envs([("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "1"), ("VLLM_CPU_KVCACHE_SPACE", "1")])
            .envs([("VLLM_NO_USAGE_STATS", "1"), ("DO_NOT_TRACK", "1")])
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()?;
        let mut server = Self { child, url: format!("http://127.0.0.1:{port}"), log };
        server.wait()?;
        Ok(server)
    }

    fn wait(&mut self) -> io::Result<()> {
        let start = Instant::now();
        let mut said = 0;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.failed(&format!("vLLM ended: {status}")));
            }
            if Client::new(&self.url).get("/health").is_ok_and(|response| response.status == 200) {
                eprintln!("vLLM serves at {} after {:.0} s", self.url, start.elapsed().as_secs_f64());
                return Ok(());
            }
            if start.elapsed() > START {
                return Err(self.failed("vLLM did not come up within 600 s"));
            }
            if start.elapsed().as_secs() >= said + 15 {
                said = start.elapsed().as_secs();
                eprintln!("waiting for vLLM: {said} s");
            }
            thread::sleep(Duration::from_millis(250));
        }
    }

    /// An error with the end of what the server said.
    fn failed(&self, what: &str) -> io::Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(40)..].join("\n");
        io::Error::other(format!("{what}; the end of {}:\n{end}", self.log.display()))
    }

    /// What the server said so far.
    pub fn log(&self) -> io::Result<String> {
        fs::read_to_string(&self.log)
    }

    pub fn target(&self) -> Target {
        Target { url: self.url.clone(), model: MODEL.to_owned(), pid: self.child.id() }
    }
}

impl Drop for Vllm {
    fn drop(&mut self) {
        // One that is gone already needs no signal.
        let _ = sys::kill_group(self.child.id(), libc::SIGTERM);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(50));
        }
        let _ = sys::kill_group(self.child.id(), libc::SIGKILL);
        let _ = self.child.wait();
        if !thread::panicking() {
            let _ = fs::remove_file(&self.log);
        }
    }
}
