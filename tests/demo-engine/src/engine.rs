//! The `VLLM::EngineCore` process: takes ADD and ABORT, runs steps, and says after each what came out.
//!
//! The main thread is the busy loop; each ZeroMQ context has its IO thread. With statistics on (always, here) a message
//! leaves after every step, even when it holds no output, and one more after something finished.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::cuda::{self, Cuda};
use crate::scheduler::{Limits, Scheduler, Step};
use crate::server::Role;
use crate::trouble::{Troubled, Troubles};
use crate::wire::{self, Add, Outputs, Stats};
use crate::zmtp::{Delivery, Endpoint, Io, Message, Socket};
use crate::{sys, worker};

/// The ipc endpoints of one API server, bound by it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Client {
    pub input: PathBuf,
    pub output: PathBuf,
}

/// What the API server tells the engine at start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    pub clients: Vec<Client>,
    pub limits: Limits,
    /// What a step with one sequence takes, ms.
    pub step_ms: f64,
    pub worker: worker::Config,
    /// `None`: a step calls no CUDA.
    pub cuda: Option<cuda::Config>,
    pub troubles: Troubles,
}

/// Each further sequence of a batch makes a step longer by this share; batching pays, but not for nothing.
const SEQUENCE_SHARE: f64 = 0.05;
/// And each prompt token by this share: a full budget of 2,048 tokens takes about 20 single steps.
const TOKEN_SHARE: f64 = 0.01;
/// This share of a step with CUDA comes before its first call.
const PREPARING_SHARE: f64 = 0.1;

struct Core {
    scheduler: Scheduler,
    input: Io,
    output: Io,
    worker: Io,
    step_ms: f64,
    cuda: Option<Cuda>,
    troubled: Troubled,
}

/// Runs until an API server is gone.
pub fn run(config: &Config) -> anyhow::Result<()> {
    sys::set_comm("VLLM::EngineCore");
    sys::die_with_parent();
    let requests = UnixListener::bind(&config.worker.requests).context("the engine's worker socket")?;
    // Kept for its handle only: PDEATHSIG ends the worker with us.
    let _worker = Role::Worker(config.worker.clone()).spawn()?;
    let (arrivals, arrived) = channel();
    let connect = |kind, path: &PathBuf| Socket {
        kind,
        identity: (kind == "DEALER").then(|| vec![0, 0]),
        endpoint: Endpoint::Connect(path.clone()),
    };
    let worker = Io::start(
        "ZMQbg/IO/0",
        vec![
            Socket { kind: "XPUB", identity: None, endpoint: Endpoint::Bind(requests) },
            connect("SUB", &config.worker.responses),
        ],
        |delivery| !matches!(delivery, Delivery::Closed(_)),
    )?;
    let inputs = config.clients.iter().map(|client| connect("DEALER", &client.input)).collect();
    let outputs = config.clients.iter().map(|client| connect("PUSH", &client.output)).collect();
    let mut core = Core {
        scheduler: Scheduler::new(config.limits),
        input: Io::start("ZMQbg/IO/0", inputs, move |delivery| forward(delivery, &arrivals))?,
        output: Io::start("ZMQbg/IO/0", outputs, |delivery| !matches!(delivery, Delivery::Closed(_)))?,
        worker,
        step_ms: config.step_ms,
        cuda: config.cuda.as_ref().map(Cuda::start).transpose().context("CUDA")?,
        troubled: Troubled::new(config.troubles),
    };
    for client in 0..config.clients.len() {
        core.input.send(client, wire::encode_ready(&config.limits));
    }
    loop {
        if !core.scheduler.has_requests() {
            if core.scheduler.take_finished() {
                core.sleep(0.3);
                core.say(Vec::new());
            }
            // The input thread ends when an API server is gone, and so do we.
            let Ok(message) = arrived.recv() else { return Ok(()) };
            core.take(&message);
        }
        while let Ok(message) = arrived.try_recv() {
            core.take(&message);
        }
        if core.scheduler.has_requests() {
            core.step()?;
        }
    }
}

fn forward(delivery: Delivery, arrivals: &Sender<Message>) -> bool {
    match delivery {
        Delivery::Connected(_) => true,
        Delivery::Message(_, message) => arrivals.send(message).is_ok(),
        Delivery::Closed(_) => false,
    }
}

impl Core {
    fn take(&mut self, message: &Message) {
        let [kind, payload] = &message[..] else { return };
        match kind[..] {
            [wire::ADD] => match Add::decode(payload) {
                Ok(add) => {
                    self.troubled.added(&add);
                    self.scheduler.add(add, sys::monotonic());
                }
                Err(error) => eprintln!("demo-engine: {error}"),
            },
            [wire::ABORT] => match wire::decode_abort(payload) {
                Ok(ids) => self.scheduler.abort(&ids),
                Err(error) => eprintln!("demo-engine: {error}"),
            },
            [wire::UTILITY] => match wire::decode_utility(payload) {
                Ok((client, call)) => {
                    let answer = Outputs { utility: Some(call), timestamp: sys::monotonic(), ..Outputs::default() };
                    self.output.send(client as usize, answer.encode());
                }
                Err(error) => eprintln!("demo-engine: {error}"),
            },
            _ => eprintln!("demo-engine: a request of unknown type {kind:?}"),
        }
    }

    fn step(&mut self) -> anyhow::Result<()> {
        let step = self.scheduler.schedule(sys::monotonic());
        // vLLM's two calls of a step: execute_model, sample_tokens.
        self.worker.send(0, vec![worker::PING.to_vec()]);
        let mut left = cost(&step);
        if let Some(cuda) = &mut self.cuda {
            // An engine prepares its inputs before it calls anything.
            let preparing = left * PREPARING_SHARE;
            left -= preparing;
            thread::sleep(Duration::from_secs_f64(self.step_ms * preparing / 1e3));
            cuda.execute(&step)?;
        }
        self.sleep(left);
        thread::sleep(self.troubled.delay(&step));
        if let Some(cuda) = &mut self.cuda {
            cuda.sample(&step)?;
        }
        self.worker.send(0, vec![worker::PING.to_vec()]);
        let mut outputs = self.scheduler.complete(&step);
        let failed = self.troubled.gave(&mut outputs);
        self.scheduler.abort(&failed);
        self.say(outputs);
        Ok(())
    }

    /// Sleeps `steps` single-sequence steps.
    fn sleep(&self, steps: f64) {
        thread::sleep(Duration::from_secs_f64(self.step_ms * steps / 1e3));
    }

    /// One message to each client with outputs; the statistics go to one of them, or to the first.
    fn say(&mut self, outputs: Vec<(u32, wire::Output)>) {
        let mut messages: Vec<(u32, Vec<wire::Output>)> = Vec::new();
        for (client, output) in outputs {
            match messages.iter_mut().find(|(known, _)| *known == client) {
                Some((_, outputs)) => outputs.push(output),
                None => messages.push((client, vec![output])),
            }
        }
        if messages.is_empty() {
            messages.push((0, Vec::new()));
        }
        let mut stats: Option<Stats> = Some(self.scheduler.stats());
        for (client, outputs) in messages {
            let message = Outputs { outputs, stats: stats.take(), timestamp: sys::monotonic(), utility: None };
            self.output.send(client as usize, message.encode());
        }
    }
}

fn cost(step: &Step) -> f64 {
    let tokens: usize = step.iter().map(|(_, count)| count).sum();
    1.0 + SEQUENCE_SHARE * step.len() as f64 + TOKEN_SHARE * tokens.saturating_sub(step.len()) as f64
}
