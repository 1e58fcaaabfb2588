//! Checks of one server: found, readable, known version, tokenizer functions, clock, endpoint.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use tracer_ebpf::wire::call::FUNCTION_ENCODE;
use tracer_ebpf::wire::target::DESCRIPTORS_MAX;

use super::{Check, cuda};
use crate::attach::family::clock::CLOCK;
use crate::attach::family::messages::MESSAGES;
use crate::attach::family::tokenizer::TOKENIZER;
use crate::attach::family::{Family, Point};
use crate::attach::{files, plan, table};
use crate::discover::privilege::{NEEDED, Privileges, is_supported, why_refused};
use crate::discover::{self, ServerProcess, ServerProcesses, printable_path, role_name};
use crate::engine;
use crate::input::Role;
use crate::proc::{OWN, Proc};

/// How long an endpoint may take to accept, and then to answer.
const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn checks(pid: u32) -> Vec<Check> {
    let found = match discover::server(pid) {
        Ok(found) => found,
        Err(failure) => {
            let failed = Check::fail("target", failure.what, failure.fix);
            // `--cuda-only` traces it all the same.
            let tree = discover::process_tree(pid).ok();
            return [failed].into_iter().chain(tree.into_iter().flat_map(|tree| cuda::of_bare(&tree))).collect();
        }
    };
    let mut checks = vec![target(&found), engine_version(&found), access(&found)];
    if engine::by_name(&found.server.engine).has_messages() {
        checks.extend(tokenizers(&found));
        checks.extend(of(&found, Role::Api).map(|process| front_end(process.pid)));
    }
    checks.extend(cuda::checks(&found));
    checks.push(sockets(&found));
    checks.push(clock(&found));
    checks.push(endpoint(&found));
    checks
}

fn of(found: &ServerProcesses, role: Role) -> impl Iterator<Item = &ServerProcess> {
    found.processes.iter().filter(move |process| process.role == role)
}

fn target(found: &ServerProcesses) -> Check {
    let processes: Vec<String> = found
        .processes
        .iter()
        .filter(|process| process.role != Role::Other)
        .map(|process| {
            let index = process.index.map(|index| format!(" {index}")).unwrap_or_default();
            let rank = if process.rank.is_empty() { String::new() } else { format!(" {}", process.rank) };
            format!("{}{index}{rank} = {}", role_name(process.role), process.pid)
        })
        .collect();
    let model = if found.server.model.is_empty() {
        "model not known yet".to_owned()
    } else {
        format!("serving {}", found.server.model)
    };
    let detail = format!("{}, {model}: {}", found.server.engine, processes.join(", "));
    let has_messages = engine::by_name(&found.server.engine).has_messages();
    if of(found, Role::Engine).next().is_some() || !has_messages {
        Check::ok("target", detail)
    } else {
        Check::fail(
            "target",
            format!("{detail}; there is no engine process"),
            "wait until the server has started, then try again",
        )
    }
}

fn engine_version(found: &ServerProcesses) -> Check {
    let oldest = engine::by_name(&found.server.engine).oldest().unwrap_or_default();
    match &found.server.engine_version {
        Some(version) if is_supported(version, oldest) => {
            Check::ok("engine_version", format!("{} {version}", found.server.engine))
        }
        Some(version) => Check::fail(
            "engine_version",
            format!(
                "{} {version} has no engine process that speaks the messages that are decoded",
                found.server.engine
            ),
            format!("use {} {}.{} or later", found.server.engine, oldest.0, oldest.1),
        ),
        None => Check::warn(
            "engine_version",
            "unknown: no installed package found; messages are decoded by their shape all the same",
            "none needed",
        ),
    }
}

fn access(found: &ServerProcesses) -> Check {
    let refused: Vec<String> =
        found.processes.iter().filter(|process| !process.readable).map(|process| process.pid.to_string()).collect();
    if refused.is_empty() {
        Check::ok("target_access", "all its processes may be looked into")
    } else {
        Check::fail(
            "target_access",
            format!(
                "may not look into {}: {}",
                refused.join(", "),
                why_refused(&Privileges::own().missing_for_looking())
            ),
            format!("run as root (sudo), or give it {NEEDED}"),
        )
    }
}

/// One check for each library file that an API server has mapped, found and read as `attach` does.
fn tokenizers(found: &ServerProcesses) -> Vec<Check> {
    let maps: Vec<_> =
        of(found, Role::Api).filter_map(|process| Some((process.pid, Proc::this().maps(process.pid).ok()?))).collect();
    let maps = maps.iter().map(|(pid, mappings)| (*pid, mappings.as_slice()));
    let checks: Vec<Check> = plan::libraries(maps, |path| TOKENIZER.library.may_be(path))
        .iter()
        .map(|tokenizer| {
            let points = files::reach(tokenizer)
                .and_then(|path| files::points(&path, &TOKENIZER))
                .map(Option::unwrap_or_default);
            judge_tokenizer(&printable_path(Path::new(&tokenizer.path)), points.map_err(|error| error.to_string()))
        })
        .collect();
    if checks.is_empty() {
        let detail = "no API server has a known tokenizer library mapped: no tokenizer times";
        return vec![Check::warn(
            "tokenizer",
            detail,
            "none needed; other tokenizers, and front ends in Rust, are not timed",
        )];
    }
    checks
}

/// Whether it can be seen when a front end gets to the engine's messages.
fn front_end(pid: u32) -> Check {
    let maps = Proc::this().maps(pid).unwrap_or_default();
    let has = |family: &Family| {
        plan::libraries([(pid, maps.as_slice())], |path| family.library.may_be(path)).iter().any(|file| {
            let points = files::reach(file).and_then(|path| files::points(&path, family));
            points.is_ok_and(|points| points.is_some_and(|points| !points.is_empty()))
        })
    };
    match (has(&MESSAGES), has(&CLOCK)) {
        (true, true) => {
            Check::ok("front_end", format!("process {pid}: the decoder of messages and the clock are found"))
        }
        (true, false) => Check::warn(
            "front_end",
            format!("process {pid}: no clock is found in its Python: ttft_engine ends when the message is decoded"),
            "none needed; it is up to one turn of the event loop short",
        ),
        (false, _) => Check::warn(
            "front_end",
            format!(
                "process {pid}: no decoder of messages is found (msgspec without symbols): ttft_engine ends when the message arrives"
            ),
            "use the msgspec wheel of PyPI, which has its symbols",
        ),
    }
}

fn judge_tokenizer(path: &str, points: Result<Vec<Point>, String>) -> Check {
    let points = match points {
        Ok(points) => points,
        Err(error) => return Check::warn("tokenizer", format!("{path} cannot be read: {error}"), "run as root (sudo)"),
    };
    let encode = points.iter().filter(|point| point.function == FUNCTION_ENCODE).count();
    let detail = format!("{encode} encode functions in {path}");
    if encode > 0 {
        Check::ok("tokenizer", detail)
    } else {
        Check::warn(
            "tokenizer",
            format!("{detail}: it is stripped, or a version that is not known"),
            "use the tokenizers wheel of PyPI, which has its symbols",
        )
    }
}

/// Whether the table of descriptors has room for the server's sockets.
fn sockets(found: &ServerProcesses) -> Check {
    let count = found
        .processes
        .iter()
        .filter(|process| process.role != Role::Worker)
        .map(|process| {
            let open = Proc::this().descriptors(process.pid).unwrap_or_default();
            open.into_iter().filter(|fd| table::is_stream_socket(process.pid, *fd)).count()
        })
        .sum();
    judge_sockets(count)
}

fn judge_sockets(count: usize) -> Check {
    let room = DESCRIPTORS_MAX as usize;
    let detail = format!("{count} sockets open, room for {room}");
    if count < room / 4 * 3 {
        Check::ok("sockets", detail)
    } else {
        Check::warn(
            "sockets",
            format!("{detail}: connections that find none are not seen, and counted as lost at descriptors"),
            "trace fewer servers at a time, or run more servers with fewer connections each",
        )
    }
}

fn clock(found: &ServerProcesses) -> Check {
    let offset = of(found, Role::Engine).map(|engine| engine.clock_offset_ns).next().unwrap_or_default();
    if offset == 0 {
        Check::ok("clock", "the engine's monotonic clock is the host's")
    } else {
        let seconds = offset as f64 / 1e9;
        Check::ok("clock", format!("the engine is in a time namespace of its own; {seconds} s are added to its stamps"))
    }
}

/// What came of asking the endpoint.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Status of `GET /health`.
    Http(u16),
    /// It accepted, and what it sent is no HTTP (or nothing, in time).
    Silent,
    Refused(String),
}

fn endpoint(found: &ServerProcesses) -> Check {
    // The launcher of several API servers holds the socket that they accept on.
    let mut servers = of(found, Role::Api).chain(found.processes.first());
    let Some((process, address)) = servers.find_map(|process| Some((process, *process.listening().first()?))) else {
        return Check::warn(
            "endpoint",
            "no TCP socket listens in its API servers",
            "none needed if it serves a unix socket or is headless",
        );
    };
    if process.network_namespace != Proc::this().namespace(OWN, "net") {
        return Check::ok("endpoint", format!("{address}, in a network namespace of its own; not tried from here"));
    }
    let reachable = SocketAddr::new(reachable(address.ip()), address.port());
    judge(reachable, found.tls, &ask(reachable, found.tls, ENDPOINT_TIMEOUT))
}

/// Where to reach a socket that is bound to every address.
fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        // Most IPv6 wildcard sockets take IPv4 too; one that does not is reached by its own loopback.
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

fn ask(address: SocketAddr, tls: bool, patience: Duration) -> Answer {
    let connected = TcpStream::connect_timeout(&address, patience).and_then(|stream| {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(stream)
    });
    let mut stream = match connected {
        Ok(stream) => stream,
        Err(error) => return Answer::Refused(error.to_string()),
    };
    if tls {
        return Answer::Silent;
    }
    let request =
        format!("GET /health HTTP/1.1\r\nHost: {address}\r\nUser-Agent: inferspan-doctor\r\nConnection: close\r\n\r\n");
    let mut start = [0; 512];
    let read = stream.write_all(request.as_bytes()).and_then(|()| stream.read(&mut start));
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = read.ok().and_then(|length| response.parse(start.get(..length)?).ok());
    parsed.and(response.code).map_or(Answer::Silent, Answer::Http)
}

fn judge(address: SocketAddr, tls: bool, answer: &Answer) -> Check {
    match answer {
        Answer::Http(status @ 200..=299) => Check::ok("endpoint", format!("http://{address}/health answers {status}")),
        Answer::Http(404) => Check::ok("endpoint", format!("http://{address} answers; it has no /health")),
        Answer::Http(status) => Check::warn(
            "endpoint",
            format!("http://{address}/health answers {status}: the engine is not healthy"),
            "look at the server's log",
        ),
        Answer::Silent if tls => {
            Check::ok("endpoint", format!("{address} accepts connections (TLS, not tried further)"))
        }
        Answer::Silent => Check::warn(
            "endpoint",
            format!("{address} accepts connections but does not answer GET /health within 1 s"),
            "look at the server's log; it may be starting, overloaded, or speak TLS",
        ),
        Answer::Refused(error) => Check::warn(
            "endpoint",
            format!("{address} cannot be reached: {error}"),
            "look at the server's log; it may be starting",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::Status;
    use super::*;

    /// A server for one connection that answers `response`; gives its address.
    /// A busy machine may take more than a user's second to run the other thread.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn serve(response: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"GET /health HTTP/1.1\r\n"));
            stream.write_all(response).unwrap();
        });
        address
    }

    #[test]
    fn an_endpoint_is_judged_by_its_answer() {
        for (response, expected, status) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..], Answer::Http(200), Status::Ok),
            (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", Answer::Http(503), Status::Warn),
            (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", Answer::Http(404), Status::Ok),
            (b"\x15\x03\x01\x00\x02\x02\x46", Answer::Silent, Status::Warn),
        ] {
            let address = serve(response);
            let answer = ask(address, false, PATIENCE);
            assert_eq!(answer, expected);
            assert_eq!(judge(address, false, &answer).status, status);
        }
    }

    #[test]
    fn a_closed_port_is_said_to_be_closed() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let answer = ask(address, false, PATIENCE);
        assert!(matches!(&answer, Answer::Refused(error) if error.contains("refused")), "{answer:?}");
        assert_eq!(judge(address, false, &answer).status, Status::Warn);
    }

    #[test]
    fn wildcard_addresses_are_reached_on_loopback() {
        assert_eq!(reachable("0.0.0.0".parse().unwrap()), Ipv4Addr::LOCALHOST);
        assert_eq!(reachable("::".parse().unwrap()), Ipv6Addr::LOCALHOST);
        assert_eq!(reachable("10.1.2.3".parse().unwrap()), "10.1.2.3".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn tokenizers_without_their_functions_are_a_warning() {
        let encode = Point { function: FUNCTION_ENCODE, ..Point::default() };
        assert_eq!(judge_tokenizer("/t.so", Ok(vec![encode])).status, Status::Ok);
        assert_eq!(judge_tokenizer("/t.so", Ok(vec![])).status, Status::Warn);
        assert_eq!(judge_tokenizer("/t.so", Err("no such file".into())).status, Status::Warn);
    }

    #[test]
    fn a_server_with_almost_as_many_sockets_as_there_is_room_for_is_a_warning() {
        assert_eq!(judge_sockets(66_000).status, Status::Ok);
        assert_eq!(judge_sockets(100_000).status, Status::Warn);
    }
}
