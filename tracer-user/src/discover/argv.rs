//! Command lines of servers.
//!
//! Pure. Enters: the words of a command line. Leaves: what kind of program it is; what an engine's own command lines say, its folder
//! knows. Every word that no engine asks for is dropped here, because a command line may hold keys.

use crate::engine::process::{Invocation, Launch, Program, basename};
use crate::engine::{ENGINES, Engine};

/// What the command line `words` is.
pub(super) fn program(words: &[String]) -> Program {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some((&first, rest)) = words.split_first() else { return Program::Other };
    match basename(first) {
        name if is_python(name) => python(rest),
        name => of(&Invocation::Binary(name, rest)).unwrap_or(Program::Other),
    }
}

fn of(invocation: &Invocation<'_>) -> Option<Program> {
    ENGINES.into_iter().find_map(|engine| engine.program(invocation))
}

/// `python`, `python3`, `python3.12`, `python3.13t`, `pypy3`.
fn is_python(name: &str) -> bool {
    let version = name.strip_prefix("python").or_else(|| name.strip_prefix("pypy"));
    version.is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b't'))
}

/// The words after the interpreter: its own options, then `-m MODULE`, `-c CODE` or a script.
fn python(words: &[&str]) -> Program {
    let mut rest = words;
    while let Some((&word, after)) = rest.split_first() {
        rest = after;
        match word {
            "-m" => return rest.split_first().map_or(Program::Python, |(module, rest)| of_module(module, rest)),
            "-c" => return rest.first().map_or(Program::Python, |code| of_code(code)),
            // Options of the interpreter that take a word of their own.
            "-W" | "-X" | "--check-hash-based-pycs" => rest = rest.get(1..).unwrap_or_default(),
            _ if word.starts_with("-m") => return of_module(&word[2..], rest),
            _ if word.starts_with('-') => {}
            script => return of(&Invocation::Script(script, rest)).unwrap_or(Program::Python),
        }
    }
    Program::Python
}

fn of_module(module: &str, rest: &[&str]) -> Program {
    of(&Invocation::Module(module, rest)).unwrap_or(Program::Python)
}

/// What CPython's `multiprocessing` puts behind `-c`.
fn of_code(code: &str) -> Program {
    if code.starts_with("from multiprocessing.spawn import") {
        Program::Spawned
    } else if ["resource_tracker", "forkserver", "semaphore_tracker"]
        .iter()
        .any(|module| code.starts_with(&format!("from multiprocessing.{module} import")))
    {
        Program::Plumbing
    } else {
        Program::Python
    }
}

/// The options of a server that is no program of the engine's but takes options of the same names, as its own wrappers do.
pub(super) fn options(engine: &dyn Engine, words: &[String]) -> Launch {
    let words: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
    engine.options(&words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Program {
        program(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    fn launched(line: &str) -> Launch {
        match of(line) {
            Program::Launcher(launch) => launch,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn every_way_to_start_a_server_is_one() {
        for line in [
            "/venv/bin/python /venv/bin/vllm serve m",
            "/usr/bin/python3.12 -u -X faulthandler /usr/local/bin/vllm serve m",
            "vllm serve m",
            "python3 -m vllm.entrypoints.openai.api_server --model m",
            "python3 -mvllm.entrypoints.openai.api_server --model m",
            "python -W ignore -m vllm.entrypoints.cli.main serve m",
            "python /src/vllm/vllm/entrypoints/openai/api_server.py --model=m",
            "/venv/bin/python /venv/bin/vllm serve --port 8000 m",
            "/venv/bin/python /venv/bin/vllm serve --served-model-name a b --port=1 --model m",
        ] {
            assert_eq!(launched(line).model.as_deref(), Some("m"), "{line}");
        }
    }

    #[test]
    fn what_starts_no_server_is_none() {
        for line in [
            "/venv/bin/python /venv/bin/vllm bench serve --model m",
            "/venv/bin/python /venv/bin/vllm chat",
            "bash -c vllm serve m",
            "timeout 60 /venv/bin/vllm serve m",
            "grep vllm serve",
            "vim vllm",
            "",
        ] {
            assert!(!matches!(of(line), Program::Launcher(_)), "{line}");
        }
        assert_eq!(program(&[]), Program::Other);
    }

    #[test]
    fn the_name_clients_use_is_the_first_served_name_else_the_model() {
        for (line, expected) in [
            ("vllm serve /models/llama", Some("/models/llama")),
            ("vllm serve org/m --served-model-name tiny big --port 1", Some("tiny")),
            ("vllm serve org/m --served_model_name tiny", Some("tiny")),
            ("vllm serve org/m --served-model-name=tiny", Some("tiny")),
            ("vllm serve --served-model-name tiny big --port 8000 org/m", Some("tiny")),
            ("python -m vllm.entrypoints.openai.api_server --model a --model b", Some("b")),
            ("vllm serve --config conf.yaml", None),
            ("vllm serve", None),
            ("vllm serve --enforce-eager", None),
        ] {
            assert_eq!(launched(line).served_model(), expected, "{line}");
        }
    }

    #[test]
    fn address_and_kind_of_endpoint() {
        let launch = launched("vllm serve m --host 127.0.0.1 --port 8123 --ssl-certfile c --headless");
        assert_eq!((launch.host.as_deref(), launch.port), (Some("127.0.0.1"), Some(8123)));
        assert!(launch.tls && launch.headless);
        assert_eq!(launched("vllm serve m --port=99999").port, None);
        assert_eq!(launched("vllm serve m --port").port, None);
    }

    #[test]
    fn servers_of_ones_own_are_read_by_their_engines_option_names() {
        let words = ["my-server", "--served-model-name", "demo", "--port=0"].map(str::to_owned);
        for engine in ENGINES {
            assert_eq!(options(engine, &words).served_model(), Some("demo"));
            assert_eq!(options(engine, &[]), Launch { engine: engine.name(), ..Launch::default() });
        }
    }

    #[test]
    fn keys_on_the_command_line_are_dropped() {
        let launch = launched("vllm serve m --api-key sk-secret sk-other --port 1 --hf-token hf_secret");
        assert!(!format!("{launch:?}").contains("secret"));
        assert_eq!(launched("vllm serve --api-key sk-secret sk-other --port 1").model, None);
    }

    #[test]
    fn helpers_of_python_are_told_apart() {
        let code = |code: &str| program(&["python".into(), "-B".into(), "-c".into(), code.into()]);
        assert_eq!(code("from multiprocessing.resource_tracker import main;main(32)"), Program::Plumbing);
        assert_eq!(code("from multiprocessing.forkserver import main; main(3)"), Program::Plumbing);
        assert_eq!(code("from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5)"), Program::Spawned);
        assert_eq!(code("print(1)"), Program::Python);
        assert_eq!(of("python3 train.py"), Program::Python);
        assert_eq!(of("/x/vllm-rs frontend --listen-fd 3"), Program::FrontEnd);
        assert_eq!(of("/x/vllm-rs bench"), Program::Other);
    }
}
