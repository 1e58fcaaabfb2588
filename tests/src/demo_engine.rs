//! Starts a demo engine for a test, and ends it with the test.

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use anyhow::Context as _;
use inferspan_harness::process::{Signal, send};
use inferspan_harness::server::Server;
use inferspan_harness::wait::Interrupt;

use crate::judge::Target;
use crate::traffic::{Kind, Load, Until};

/// A running demo engine.
#[derive(Debug)]
pub struct DemoEngine {
    server: Server,
    pub target: Target,
}

impl DemoEngine {
    /// `command` starts the engine, perhaps through another program (`unshare`); `pid` finds the server's pid in our pid
    /// namespace, given the child's and the announced one.
    pub fn start(mut command: Command, folder: &Path, pid: impl Fn(u32, u32) -> Option<u32>) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let server = Server::start_demo(&mut command, folder, &Interrupt::never())?;
        let pid = pid(server.process.pid(), server.pid).context("the server has no pid")?;
        let target = Target { pid, ..Target::from(&server) };
        Ok(Self { server, target })
    }

    /// Has it answer so many streamed completions, of two clients; returns when they are whole.
    pub fn answer(&self, count: usize) -> io::Result<()> {
        let load = Load {
            url: self.target.url.clone(),
            model: self.target.model.clone(),
            kinds: vec![Kind::CompletionStream],
            clients: 2,
            until: Until::Requests(count),
            seed: 1,
        };
        load.run().map(|_| ())
    }
}

impl Drop for DemoEngine {
    fn drop(&mut self) {
        // To the server itself: a wrapper around it ends with it, and what the server started is its own to end.
        let _ = send(self.target.pid, Signal::TERM);
        let _ = self.server.process.end(Duration::from_secs(5));
    }
}
