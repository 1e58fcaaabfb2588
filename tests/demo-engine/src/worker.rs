//! The `VLLM::Worker` process: answers every ping of the engine with one of its own.
//!
//! The real one runs the model; what crosses its sockets are one-byte notifications (three bytes with ZMTP's frame head),
//! the data goes through shared memory. Only the notifications are of interest here.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::channel;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::sys;
use crate::zmtp::{Delivery, Endpoint, Io, Socket};

/// What the engine tells its worker at start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// Bound by the engine: engine to worker.
    pub requests: PathBuf,
    /// Bound by the worker: worker to engine.
    pub responses: PathBuf,
}

/// One notification.
pub const PING: [u8; 1] = [0];

/// Runs until the engine is gone.
pub fn run(config: &Config) -> anyhow::Result<()> {
    sys::set_comm("VLLM::Worker");
    sys::die_with_parent();
    let listener = UnixListener::bind(&config.responses).context("the worker's socket")?;
    let sockets = vec![
        Socket { kind: "SUB", identity: None, endpoint: Endpoint::Connect(config.requests.clone()) },
        Socket { kind: "XPUB", identity: None, endpoint: Endpoint::Bind(listener) },
    ];
    let (pings, pinged) = channel();
    let io = Io::start("ZMQbg/IO/0", sockets, move |delivery| match delivery {
        Delivery::Message(0, _) => pings.send(()).is_ok(),
        Delivery::Closed(_) => false,
        Delivery::Connected(_) | Delivery::Message(..) => true,
    })?;
    for () in pinged {
        io.send(1, vec![PING.to_vec()]);
    }
    Ok(())
}
