//! Command lines of servers.
//!
//! Pure. Enters: the words of a command line. Leaves: what kind of program it is and, for a server, the few options that
//! discovery shows or connects to ([`Launch`]); every other word is dropped here, because a command line may hold keys.
//! Options that a `--config` file holds are not known; the model is then learned from the traffic.

/// What a process is, as far as its command line tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Starts a server: `vllm serve …`, `python -m vllm.entrypoints.openai.api_server …`.
    Launcher(Launch),
    /// vLLM's HTTP front end in Rust: `vllm-rs frontend …`.
    RustFrontend,
    /// A Python process that `multiprocessing` spawned or forked from its server.
    Spawned,
    /// `multiprocessing`'s own processes, which carry nothing.
    Plumbing,
    /// Some other Python process.
    Python,
    Other,
}

/// What a server's command line says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launch {
    pub model: Option<String>,
    pub served_names: Vec<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    /// Only engines, no HTTP (`--headless`).
    pub headless: bool,
    /// Speaks TLS (`--ssl-certfile`).
    pub tls: bool,
}

impl Launch {
    /// The name that clients use and that vLLM labels its metrics with: the first served name, else the model as given.
    pub fn served_model(&self) -> Option<&str> {
        self.served_names.first().or(self.model.as_ref()).map(String::as_str)
    }
}

/// Options of `vllm serve` that take several words, so that a word after them is no model.
const SEVERAL: [&str; 5] = ["served-model-name", "api-key", "lora-modules", "middleware", "cudagraph-capture-sizes"];

/// What the command line `words` is.
pub fn program(words: &[String]) -> Program {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some((&first, rest)) = words.split_first() else { return Program::Other };
    match basename(first) {
        "vllm" => vllm(rest).unwrap_or(Program::Other),
        "vllm-rs" if rest.first() == Some(&"frontend") => Program::RustFrontend,
        name if is_python(name) => python(rest),
        _ => Program::Other,
    }
}

fn basename(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
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
            script => return of_script(script, rest),
        }
    }
    Program::Python
}

fn of_module(module: &str, rest: &[&str]) -> Program {
    match module {
        "vllm.entrypoints.openai.api_server" | "vllm.entrypoints.api_server" | "vllm.entrypoints.grpc_server" => {
            Program::Launcher(launch(rest))
        }
        "vllm.entrypoints.cli.main" | "vllm.scripts" | "vllm" => vllm(rest).unwrap_or(Program::Python),
        _ => Program::Python,
    }
}

fn of_script(script: &str, rest: &[&str]) -> Program {
    if basename(script) == "vllm" {
        return vllm(rest).unwrap_or(Program::Python);
    }
    let module = script.strip_suffix(".py").unwrap_or(script);
    if module.ends_with("vllm/entrypoints/openai/api_server") || module.ends_with("vllm/entrypoints/api_server") {
        return Program::Launcher(launch(rest));
    }
    Program::Python
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

/// The options of a server that is no program of vLLM's but takes options of the same names, as its own wrappers do.
pub fn options(words: &[String]) -> Launch {
    launch(&words.iter().skip(1).map(String::as_str).collect::<Vec<_>>())
}

/// The options that matter, in both forms, the last one counting, as argparse has it.
fn launch(words: &[&str]) -> Launch {
    let mut launch = Launch::default();
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
    fn servers_of_ones_own_are_read_by_vllms_option_names() {
        let words = ["my-server", "--served-model-name", "demo", "--port=0"].map(str::to_owned);
        assert_eq!(options(&words).served_model(), Some("demo"));
        assert_eq!(options(&[]), Launch::default());
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
        assert_eq!(of("/x/vllm-rs frontend --listen-fd 3"), Program::RustFrontend);
        assert_eq!(of("/x/vllm-rs bench"), Program::Other);
    }
}
