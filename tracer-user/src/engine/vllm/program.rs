//! vLLM's command lines.
//!
//! Pure. Enters: how a process was started. Leaves: what kind of program it is and, for a server, the few options that discovery shows
//! or connects to. Options that a `--config` file holds are not known; the model is then learned from the traffic.

use crate::engine::process::{Invocation, Launch, Program, basename};

/// Options of `vllm serve` that take several words, so that a word after them is no model.
const SEVERAL: [&str; 5] = ["served-model-name", "api-key", "lora-modules", "middleware", "cudagraph-capture-sizes"];

/// `vllm serve …`, `python -m vllm.entrypoints.openai.api_server …`, `vllm-rs frontend …`.
pub(super) fn program(invocation: &Invocation<'_>) -> Option<Program> {
    match *invocation {
        Invocation::Binary("vllm", rest) => vllm(rest),
        Invocation::Binary("vllm-rs", ["frontend", ..]) => Some(Program::FrontEnd),
        Invocation::Binary(..) => None,
        Invocation::Module(module, rest) => match module {
            "vllm.entrypoints.openai.api_server" | "vllm.entrypoints.api_server" | "vllm.entrypoints.grpc_server" => {
                Some(Program::Launcher(launch(rest)))
            }
            "vllm.entrypoints.cli.main" | "vllm.scripts" | "vllm" => vllm(rest),
            _ => None,
        },
        Invocation::Script(script, rest) => {
            if basename(script) == "vllm" {
                return vllm(rest);
            }
            let module = script.strip_suffix(".py").unwrap_or(script);
            let is_server = module.ends_with("vllm/entrypoints/openai/api_server")
                || module.ends_with("vllm/entrypoints/api_server");
            is_server.then(|| Program::Launcher(launch(rest)))
        }
    }
}

fn vllm(words: &[&str]) -> Option<Program> {
    match words.split_first()? {
        (&"serve", rest) => {
            let mut launch = launch(rest);
            // The model is a word of its own here: the first one, or the last when options come first.
            launch.model = positional(rest).map(str::to_owned).or(launch.model);
            Some(Program::Launcher(launch))
        }
        _ => None,
    }
}

fn positional<'a>(words: &[&'a str]) -> Option<&'a str> {
    let first = words.first()?;
    if !first.starts_with('-') {
        return Some(first);
    }
    // `--port 8000 MODEL`: a word that no option can have taken, because the option before it took its own.
    let mut taker: Option<&str> = None;
    let mut words_taken = 0;
    for word in words {
        if let Some(option) = word.strip_prefix("--") {
            taker = (!option.contains('=')).then_some(option);
            words_taken = 0;
        } else if word.starts_with('-') {
            taker = None;
        } else {
            match taker {
                Some(option) if words_taken == 0 || SEVERAL.contains(&dashed(option).as_str()) => words_taken += 1,
                _ => return Some(word),
            }
        }
    }
    None
}

/// vLLM reads `--served_model_name` as `--served-model-name`.
fn dashed(option: &str) -> String {
    option.replace('_', "-")
}

/// The options that matter, in both forms, the last one counting, as argparse has it.
pub(super) fn launch(words: &[&str]) -> Launch {
    let mut launch = Launch { engine: "vllm", ..Launch::default() };
    let mut rest = words;
    while let Some((&word, after)) = rest.split_first() {
        rest = after;
        let Some(option) = word.strip_prefix("--") else { continue };
        let (name, joined) = match option.split_once('=') {
            Some((name, value)) => (dashed(name), Some(value)),
            None => (dashed(option), None),
        };
        let values: Vec<&str> = match joined {
            Some(value) => vec![value],
            None => rest.iter().copied().take_while(|word| !word.starts_with('-')).collect(),
        };
        let value = values.first().copied();
        match name.as_str() {
            "model" => launch.model = value.map(str::to_owned).or(launch.model),
            "served-model-name" => launch.served_names = values.iter().map(|&name| name.to_owned()).collect(),
            "host" => launch.host = value.map(str::to_owned).or(launch.host),
            "port" => launch.port = value.and_then(|port| port.parse().ok()).or(launch.port),
            "headless" => launch.headless = true,
            "ssl-certfile" => launch.tls = true,
            _ => {}
        }
    }
    launch
}
