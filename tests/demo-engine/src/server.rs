//! The process tree: who is started as what, when it is ready, and how it ends.
//!
//! A child is this same binary, started again under vLLM's process title, with its role in the environment; so that its
//! command line is the title alone, as `setproctitle` leaves it.

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use serde::{Deserialize, Serialize};

use crate::engine::Client;
use crate::metrics::{Metrics, shared_len};
use crate::scheduler::Limits;
use crate::sys::{self, Shared};
use crate::trouble::Troubles;
use crate::{api, cuda, engine, worker};

const ROLE: &str = "DEMO_ENGINE_ROLE";

/// A small LLM server that needs neither GPU nor Python and speaks what vLLM 0.32 speaks on the wire.
#[derive(Debug, Parser)]
#[command(name = "demo-engine", version)]
pub struct Arguments {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Where to write {"http","pid","model"} when the server is ready.
    #[arg(long, value_name = "FILE")]
    announce: Option<PathBuf>,
    /// Name of the served model.
    #[arg(long, alias = "model", default_value = "demo")]
    served_model_name: String,
    /// Sequences in a batch.
    #[arg(long, default_value_t = 8)]
    max_num_seqs: usize,
    /// Tokens a step may compute.
    #[arg(long, default_value_t = 2048)]
    max_num_batched_tokens: usize,
    /// Longest prompt plus output, in tokens.
    #[arg(long, default_value_t = 512)]
    max_model_len: usize,
    /// Blocks of the KV cache; few of them make preemptions.
    #[arg(long, alias = "num-gpu-blocks-override", default_value_t = 1024)]
    blocks: usize,
    /// Tokens of a block.
    #[arg(long, default_value_t = 16)]
    block_size: usize,
    /// What a step with one sequence takes, in ms.
    #[arg(long, default_value_t = 4.0)]
    step_ms: f64,
    /// API server processes.
    #[arg(long, alias = "api-server-count", default_value_t = 1)]
    api_servers: usize,
    /// Say in every usage how many prompt tokens came from the prefix cache.
    #[arg(long)]
    enable_prompt_tokens_details: bool,
    /// Taken as vLLM takes it; nobody is asked for it.
    #[arg(long = "api-key", value_name = "KEY")]
    _api_key: Option<String>,
    /// Folder of the fake CUDA libraries that the engine shall drive in every step (`tests/fixtures/cuda`).
    #[arg(long, value_name = "FOLDER", requires = "cuda_account")]
    cuda: Option<PathBuf>,
    /// Where the engine writes what it called of CUDA, a line of JSON a step.
    #[arg(long, value_name = "FILE", requires = "cuda")]
    cuda_account: Option<PathBuf>,
    /// Send buffer of each client's connection, bytes (the kernel doubles it); the smaller it is, the sooner a client that reads too slowly
    /// is felt. Unset: the kernel's own.
    #[arg(long, value_name = "BYTES")]
    send_buffer: Option<u32>,
    /// A library whose function `Decoder_decode` the front end calls for each message of the engine that it takes up, as it calls msgspec's;
    /// named `…/msgspec/_core.*.so` it is probed like that.
    #[arg(long, value_name = "FILE")]
    decoder: Option<PathBuf>,
    #[command(flatten)]
    troubles: Troubles,
}

impl Arguments {
    fn cuda(&self) -> Option<cuda::Config> {
        let (libraries, account) = (self.cuda.clone()?, self.cuda_account.clone()?);
        Some(cuda::Config { libraries, account })
    }

    fn limits(&self) -> anyhow::Result<Limits> {
        anyhow::ensure!(
            self.blocks * self.block_size >= self.max_model_len,
            "--blocks times --block-size must hold a sequence of --max-model-len tokens"
        );
        Ok(Limits {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_model_len: self.max_model_len,
            blocks: self.blocks,
            block_size: self.block_size,
        })
    }
}

/// What a child is.
#[derive(Debug, Serialize, Deserialize)]
pub enum Role {
    Api(api::Config),
    Engine(engine::Config),
    Worker(worker::Config),
}

impl Role {
    /// Starts this binary again in this role.
    pub fn spawn(&self) -> anyhow::Result<Child> {
        let title = match self {
            Self::Api(config) => format!("VLLM::APIServer_{}", config.index),
            Self::Engine(_) => "VLLM::EngineCore".to_owned(),
            Self::Worker(_) => "VLLM::Worker".to_owned(),
        };
        Command::new("/proc/self/exe")
            .arg0(&title)
            .env(ROLE, serde_json::to_string(self)?)
            .spawn()
            .with_context(|| format!("starting {title}"))
    }

    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Api(config) => {
                sys::set_comm("VLLM::APIServer");
                sys::die_with_parent();
                let listener = sys::inherited_listener(config.listener_fd)?;
                api::run(config, listener, &*stop_flag()?, || ())
            }
            Self::Engine(config) => engine::run(&config),
            Self::Worker(config) => worker::run(&config),
        }
    }
}

/// Set by SIGTERM or SIGINT.
fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}

/// The binary's whole life: a child when the environment says so, else the server.
pub fn main() -> anyhow::Result<()> {
    if let Some(role) = std::env::var_os(ROLE) {
        let role: Role = serde_json::from_str(&role.to_string_lossy()).context("the role in the environment")?;
        return role.run();
    }
    serve(&Arguments::parse())
}

/// The unnamed files and children of a server; gone when it is.
#[derive(Debug, Default)]
struct Belongings {
    children: Vec<Child>,
    sockets: Vec<PathBuf>,
}

impl Drop for Belongings {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that is gone already needs no signal.
            let _ = sys::kill(child.id(), libc::SIGTERM);
            let _ = child.wait();
        }
        for socket in &self.sockets {
            let _ = fs::remove_file(socket);
        }
    }
}

impl Belongings {
    /// A new ipc endpoint, named as vLLM names them.
    fn endpoint(&mut self) -> PathBuf {
        use std::hash::{BuildHasher as _, RandomState};
        let (a, b) = (RandomState::new().hash_one(0), RandomState::new().hash_one(1));
        let (first, second, third) = (a >> 32, a >> 16 & 0xffff, a & 0xfff);
        let (fourth, last) = (b >> 48 & 0x3fff | 0x8000, b & 0xffff_ffff_ffff);
        let path = std::env::temp_dir().join(format!("{first:08x}-{second:04x}-4{third:03x}-{fourth:04x}-{last:012x}"));
        self.sockets.push(path.clone());
        path
    }
}

fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    anyhow::ensure!(arguments.api_servers >= 1, "--api-servers must be at least 1");
    let limits = arguments.limits()?;
    sys::set_comm("vllm");
    let stop = stop_flag()?;
    let address = (arguments.host.as_str(), arguments.port);
    let listener = TcpListener::bind(address).with_context(|| format!("listening on {address:?}"))?;
    let http = format!("http://{}", listener.local_addr()?);
    let metrics = Shared::create(shared_len(arguments.api_servers))?;
    let mut belongings = Belongings::default();
    let clients: Vec<Client> = (0..arguments.api_servers)
        .map(|_| Client { input: belongings.endpoint(), output: belongings.endpoint() })
        .collect();
    let engine = Role::Engine(engine::Config {
        clients: clients.clone(),
        limits,
        step_ms: arguments.step_ms,
        worker: worker::Config { requests: belongings.endpoint(), responses: belongings.endpoint() },
        cuda: arguments.cuda(),
        troubles: arguments.troubles,
    });
    let model = &arguments.served_model_name;
    let config = |index: usize| api::Config {
        index,
        servers: arguments.api_servers,
        client: clients[index].clone(),
        model: model.clone(),
        limits,
        metrics_fd: metrics.as_raw_fd(),
        listener_fd: listener.as_raw_fd(),
        prompt_tokens_details: arguments.enable_prompt_tokens_details,
        send_buffer: arguments.send_buffer,
        decoder: arguments.decoder.clone(),
        troubles: arguments.troubles,
    };
    let announce = || {
        if let Some(path) = &arguments.announce
            && let Err(error) = write_announcement(path, &http, model)
        {
            eprintln!("demo-engine: {error:#}");
        }
        eprintln!("demo-engine: serving {model} at {http}, pid {}", std::process::id());
    };
    if arguments.api_servers == 1 {
        belongings.children.push(engine.spawn()?);
        let config = config(0);
        api::run(config, listener.try_clone()?, &stop, announce)?;
    } else {
        sys::keep_over_exec(&listener)?;
        for index in 0..arguments.api_servers {
            belongings.children.push(Role::Api(config(index)).spawn()?);
        }
        belongings.children.push(engine.spawn()?);
        let ready = Metrics::open(metrics.as_raw_fd(), arguments.api_servers, 0, model)?;
        let mut announced = false;
        while !stop.load(Relaxed) {
            thread::sleep(Duration::from_millis(20));
            if !announced && ready.all_ready() {
                announced = true;
                announce();
            }
            for child in &mut belongings.children {
                if let Some(status) = child.try_wait()? {
                    anyhow::bail!("child {} ended: {status}", child.id());
                }
            }
        }
    }
    // Kept open until the children have it.
    drop(metrics);
    Ok(())
}

/// Readers see the whole announcement or none.
fn write_announcement(path: &Path, http: &str, model: &str) -> anyhow::Result<()> {
    let text = serde_json::json!({"http": http, "pid": std::process::id(), "model": model}).to_string();
    let whole = path.with_extension("partial");
    fs::write(&whole, text)
        .and_then(|()| fs::rename(&whole, path))
        .with_context(|| format!("writing {}", path.display()))
}
