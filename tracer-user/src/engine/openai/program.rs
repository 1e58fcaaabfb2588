//! Command lines of servers that speak the OpenAI API.
//!
//! Pure. Enters: how a process was started. Leaves: that it starts a server, and the options that discovery shows. A server that is not
//! in this list is not recognised: a port that is open says nothing of what it serves.

use crate::engine::process::{Invocation, Launch, Program, basename};

/// Python modules that serve when they are run.
const MODULES: [&str; 2] = ["sglang.launch_server", "llama_cpp.server"];
/// Programs that serve when they are run.
const SERVERS: [&str; 2] = ["llama-server", "text-generation-router"];
/// Programs (or Python scripts) that serve with this first word.
const VERBS: [(&str, &str); 3] = [("transformers", "serve"), ("ollama", "serve"), ("lmdeploy", "serve")];

pub(super) fn program(invocation: &Invocation<'_>) -> Option<Program> {
    let (name, rest, is_server) = match *invocation {
        Invocation::Module(module, rest) => (module, rest, MODULES.contains(&module)),
        Invocation::Binary(name, rest) => (name, rest, SERVERS.contains(&name)),
        Invocation::Script(script, rest) => (basename(script), rest, false),
    };
    let has_verb = || rest.first().is_some_and(|verb| VERBS.contains(&(name, verb)));
    (is_server || has_verb()).then(|| Program::Launcher(launch(rest)))
}

/// Both forms of an option, the last one counting.
pub(super) fn launch(words: &[&str]) -> Launch {
    let mut launch = Launch { engine: "openai", ..Launch::default() };
    let mut rest = words;
    while let Some((&word, after)) = rest.split_first() {
        rest = after;
        let Some(option) = word.strip_prefix("--") else { continue };
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, rest.first().copied().filter(|word| !word.starts_with('-'))),
        };
        match name {
            "model" | "model-path" => launch.model = value.map(str::to_owned).or(launch.model),
            "served-model-name" | "alias" => launch.served_names.extend(value.map(str::to_owned)),
            "host" => launch.host = value.map(str::to_owned).or(launch.host),
            "port" => launch.port = value.and_then(|port| port.parse().ok()).or(launch.port),
            "ssl-certfile" | "ssl-cert-file" => launch.tls = true,
            _ => {}
        }
    }
    launch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(invocation: Invocation<'_>) -> Option<Launch> {
        match program(&invocation)? {
            Program::Launcher(launch) => Some(launch),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn servers_are_known_by_their_command_lines() {
        let words = ["--model-path", "org/m", "--port=30000"];
        let launch = served(Invocation::Module("sglang.launch_server", &words)).unwrap();
        assert_eq!((launch.engine, launch.served_model(), launch.port), ("openai", Some("org/m"), Some(30_000)));
        let launch = served(Invocation::Script("/venv/bin/transformers", &["serve", "--port", "8000"])).unwrap();
        assert_eq!((launch.served_model(), launch.port), (None, Some(8000)));
        assert!(served(Invocation::Binary("llama-server", &["-m", "x.gguf"])).is_some());
    }

    #[test]
    fn other_programs_are_none() {
        for invocation in [
            Invocation::Script("/venv/bin/transformers", &["chat"]),
            Invocation::Binary("ollama", &["run", "llama3"]),
            Invocation::Module("http.server", &["8000"]),
            Invocation::Binary("llama-cli", &[]),
        ] {
            assert_eq!(served(invocation), None, "{invocation:?}");
        }
    }
}
