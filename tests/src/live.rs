//! What the live tests share: the check of what they need, and a fixture process that is traced.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use inferspan::attach::LoadError;
use inferspan::attach::Target;
use inferspan::attach::loader::Options;
use inferspan::input::{Direction, End, Event, Input, LossStage, What};
use inferspan::source::session::Session;

/// Whether this process may load and attach BPF programs. Says loudly why not; where the capabilities are there, a failure
/// to attach is the test's failure.
pub fn may_trace(test: &str) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("own status");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("CapEff");
    let effective = u64::from_str_radix(effective.trim(), 16).expect("hexadecimal");
    // include/uapi/linux/capability.h
    let (sys_ptrace, perfmon, bpf) = (19, 38, 39);
    let missing = [sys_ptrace, perfmon, bpf].into_iter().filter(|bit| effective >> bit & 1 == 0).count();
    if missing > 0 {
        eprintln!("SKIPPED {test}: needs CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE");
    }
    missing == 0
}

/// A started `sockets` fixture that waits for its go.
pub struct Fixture {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Numbers that the fixture printed, by name.
    pub names: HashMap<String, u32>,
    /// Its thread-group id as this process sees it.
    pub tgid: u32,
}

impl Fixture {
    /// Runs `program` with `arguments`; returns when it is ready.
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the fixture");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let tgid = child.id();
        let mut fixture = Self { child, stdin, stdout, names: HashMap::new(), tgid };
        fixture.read_names();
        fixture
    }

    fn read_names(&mut self) {
        let mut line = String::new();
        while self.stdout.read_line(&mut line).expect("fixture output") > 0 {
            match line.trim().split_once(' ') {
                Some((name, number)) => self.names.insert(name.to_owned(), number.parse().expect("a number")),
                None => return,
            };
            line.clear();
        }
    }

    /// Lets it make its calls and waits until it is gone.
    pub fn go(&mut self) {
        self.stdin.write_all(b"go\n").expect("fixture input");
        self.read_names();
        let status = self.child.wait().expect("fixture");
        assert!(status.success(), "the fixture failed: {status}");
    }

    pub fn end(&self, name: &str) -> End {
        End::of_descriptor(self.tgid, self.names[name])
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Only a test that fails leaves it running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A payload event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub offset: Option<u64>,
    pub len: u64,
    pub bytes: Vec<u8>,
    pub starts: bool,
}

/// Records lost at `stage`, as the inputs say.
pub fn lost_at<'a>(inputs: impl IntoIterator<Item = &'a Input>, stage: LossStage) -> u64 {
    let count = |input: &Input| match input {
        Input::Lost(lost) if lost.stage == stage => lost.count,
        _ => 0,
    };
    inputs.into_iter().map(count).sum()
}

/// Lets the fixtures run, and gives the calls of library functions that the session saw.
pub fn calls(session: Session, fixtures: &mut [Fixture]) -> Vec<Event> {
    fixtures.iter_mut().for_each(Fixture::go);
    let mut calls = Vec::new();
    session.detach(|batch| {
        calls.extend(batch.into_iter().filter_map(|input| match input {
            Input::Event(event) if matches!(event.what, What::Call { .. }) => Some(event),
            _ => None,
        }));
    });
    calls
}

/// All inputs of a traced run.
pub struct Trace {
    pub inputs: Vec<Input>,
}

impl Trace {
    /// Attaches to `fixture`, lets it run, detaches.
    pub fn of(fixture: &mut Fixture, options: &Options) -> Self {
        let target = Target { tgid: fixture.tgid, capture: true, libraries: false };
        Self::with(&[target], options, || fixture.go()).expect("attach")
    }

    /// Traces `targets` while `run` runs, and a little longer.
    pub fn with(targets: &[Target], options: &Options, run: impl FnOnce() + Send) -> Result<Self, LoadError> {
        let session = Session::start(options, targets)?;
        let mut inputs = Vec::new();
        std::thread::scope(|scope| {
            let running = scope.spawn(run);
            let mut deadline = Instant::now();
            while !running.is_finished() || Instant::now() < deadline {
                if !running.is_finished() {
                    deadline = Instant::now() + Duration::from_millis(200);
                }
                if let Ok(batch) = session.inputs().recv_timeout(Duration::from_millis(20)) {
                    inputs.extend(batch);
                }
            }
        });
        session.detach(|batch| inputs.extend(batch));
        Ok(Self { inputs })
    }

    /// Records lost at `stage`.
    pub fn lost(&self, stage: LossStage) -> u64 {
        lost_at(&self.inputs, stage)
    }

    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.inputs.iter().filter_map(|input| match input {
            Input::Event(event) => Some(event),
            _ => None,
        })
    }

    /// The payload events of one end and direction, in time order.
    pub fn pieces(&self, of: End, to: Direction) -> Vec<Piece> {
        let mut found: Vec<_> = self
            .events()
            .filter_map(|event| match &event.what {
                What::Data { end, direction, len, bytes, starts, offset } if *end == of && *direction == to => {
                    Some((event.at, Piece { offset: *offset, len: *len, bytes: bytes.clone(), starts: *starts }))
                }
                _ => None,
            })
            .collect();
        found.sort_by_key(|(at, _)| *at);
        found.into_iter().map(|(_, piece)| piece).collect()
    }

    /// The payload events of one end and direction: bytes covered and captured, in time order.
    pub fn data(&self, of: End, to: Direction) -> Vec<(u64, Vec<u8>)> {
        self.pieces(of, to).into_iter().map(|piece| (piece.len, piece.bytes)).collect()
    }

    /// All captured bytes of all events hold `text` somewhere.
    pub fn holds(&self, text: &[u8]) -> bool {
        self.events().any(|event| match &event.what {
            What::Data { bytes, .. } => bytes.windows(text.len()).any(|window| window == text),
            _ => false,
        })
    }

    /// Time of the first event that `is` accepts.
    pub fn when(&self, is: impl Fn(&What) -> bool) -> Option<u64> {
        self.events().filter(|event| is(&event.what)).map(|event| event.at).min()
    }
}
