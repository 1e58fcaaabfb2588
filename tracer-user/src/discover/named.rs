//! Finding servers by the names that `inferspan ls` shows.
//!
//! Enters: a name as a user types it. Leaves: the one server that has it. Refused: a name that no server has, or several.

use super::failure::LIST;
use super::{ServerProcesses, servers};
use crate::exit::{Code, Failure};
use crate::input::Server;

/// Digits of a container id that are shown, as docker does, and enough to name it.
pub const SHORT_ID: usize = 12;

/// Every server of this host; at least one.
pub fn all() -> Result<Vec<ServerProcesses>, Failure> {
    let all = servers();
    if all.is_empty() {
        return Err(Failure::new(
            Code::NoTarget,
            "no inference server was found on this host",
            "start one, or run inferspan as root and in the host's pid namespace to see those of others",
        ));
    }
    Ok(all)
}

/// The one server of this name.
pub fn one(name: &str) -> Result<ServerProcesses, Failure> {
    let mut matching: Vec<ServerProcesses> =
        all()?.into_iter().filter(|found| is_called(&found.server, name)).collect();
    match matching.len() {
        0 => Err(Failure::new(
            Code::NoTarget,
            format!("no server has the engine, model, container, service or server name {name:?}"),
            LIST,
        )),
        1 => Ok(matching.remove(0)),
        count => {
            let pids: Vec<String> = matching.iter().map(|found| found.server.pid.to_string()).collect();
            Err(Failure::new(
                Code::Usage,
                format!("{count} servers are called {name:?}: PIDs {}", pids.join(", ")),
                "name one with -p PID, or trace all with --all",
            ))
        }
    }
}

/// The engine and its version, as `inferspan ls` shows them.
pub fn engine_shown(server: &Server) -> String {
    format!("{} {}", server.engine, server.engine_version.as_deref().unwrap_or("?"))
}

/// Whether a server has this name: any that `inferspan ls` shows or its JSON holds. A container's id may be cut, as docker cuts it.
fn is_called(server: &Server, name: &str) -> bool {
    [&server.engine, &server.service, &server.model, &server.instance()].into_iter().any(|own| own == name)
        || name == engine_shown(server)
        || (name.len() >= SHORT_ID && server.container_id.as_deref().is_some_and(|id| id.starts_with(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_found_by_every_name_that_ls_shows() {
        let server = Server {
            service: "chat".into(),
            model: "llama".into(),
            engine: "vllm".into(),
            engine_version: Some("0.32.0".into()),
            container_id: Some("0123456789abcdef0123456789abcdef".into()),
            pid: 42,
            ..Server::default()
        };
        for name in ["vllm", "vllm 0.32.0", "chat", "llama", "chat-0123456789ab", "0123456789ab", "0123456789abcdef"] {
            assert!(is_called(&server, name), "{name}");
        }
        for name in ["", "vllm 0.31.0", "vllm ", "vllm ?", "0123", "lla"] {
            assert!(!is_called(&server, name), "{name}");
        }
        let alone = Server { container_id: None, engine_version: None, ..server };
        assert!(is_called(&alone, "chat-42") && is_called(&alone, "vllm ?"));
    }
}
