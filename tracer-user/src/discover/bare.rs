//! A process that is no inference server, and all below it.

use std::sync::Arc;

use super::{Host, ServerProcess, ServerProcesses};
use crate::exit::Failure;
use crate::input::{Role, Server};
use crate::proc::text::Stat;

impl Host {
    /// The process and its descendants, parents first. Their role is that of workers: their sockets are nobody's concern.
    pub fn process_tree(&self, pid: u32) -> Result<ServerProcesses, Failure> {
        let top = self.living(pid)?;
        let all: Vec<Stat> = self
            .proc
            .processes()
            .unwrap_or_default()
            .into_iter()
            .filter_map(|process| self.proc.stat(process).ok())
            .collect();
        let server = Server {
            service: std::env::var("OTEL_SERVICE_NAME")
                .ok()
                .filter(|name| !name.is_empty())
                .unwrap_or(top.comm.clone()),
            pid,
            start_ticks: top.start_ticks,
            ..Server::default()
        };
        let mut processes = vec![self.bare(&top)];
        let mut next = 0;
        while let Some(parent) = processes.get(next).map(|process| process.pid) {
            next += 1;
            processes.extend(all.iter().filter(|stat| stat.parent == parent).map(|stat| self.bare(stat)));
        }
        Ok(ServerProcesses { server: Arc::new(server), processes, gpus: Vec::new(), tls: false })
    }

    fn bare(&self, stat: &Stat) -> ServerProcess {
        let namespaces = self.proc.status(stat.pid).map(|status| status.namespace_pids).unwrap_or_default();
        ServerProcess {
            pid: stat.pid,
            parent: stat.parent,
            start_ticks: stat.start_ticks,
            namespace_pid: namespaces.get(1..).and_then(<[u32]>::last).copied(),
            role: Role::Worker,
            index: None,
            rank: String::new(),
            comm: stat.comm.clone(),
            tcp: Vec::new(),
            unix: Vec::new(),
            tokenizers: Vec::new(),
            network_namespace: None,
            clock_offset_ns: 0,
            readable: true,
        }
    }
}
