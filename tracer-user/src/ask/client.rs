//! Asks: all runs that go on, or a file.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::socket::{self, Refused};
use super::{Answer, Ask, Paper, Question, VERSION, answer};
use crate::exit::{Code, Failure};
use crate::recall::{self, Recalled};

/// For the answer of a run.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of an answer, bytes: 20 requests of 2,000 spans.
const MAX_ANSWER: u64 = 64 << 20;

/// What was answered, and what a user should know besides.
#[derive(Debug)]
pub struct Heard {
    pub answer: Answer,
    pub warnings: Vec<String>,
}

/// Asks a file, or, where none is named, all runs that go on here.
pub fn ask(ask: Ask, paper: Paper, file: Option<&Path>) -> Result<Heard, Failure> {
    let question = Question { v: VERSION, ask, paper };
    match file {
        Some(file) => {
            let Recalled { store, about } = recall::open(file, recall::LIMITS)?;
            let warnings = about.losses.into_iter().map(|loss| loss.said).collect();
            Ok(Heard { answer: answer(&store, &question), warnings })
        }
        None => ask_runs(&socket::folder(), &question),
    }
}

/// Asks all runs that have a socket in `folder`.
pub fn ask_runs(folder: &Path, question: &Question) -> Result<Heard, Failure> {
    let streams = socket::connect(folder).map_err(|error| nobody(folder, &error))?;
    if streams.is_empty() {
        let what = format!("no `inferspan attach` or `record` runs here: nobody listens in {}", folder.display());
        return Err(Failure::new(Code::NoTarget, what, START));
    }
    let (mut answers, mut warnings) = (Vec::new(), Vec::new());
    for stream in streams {
        match exchange(&stream, question) {
            Ok(Answer { error: Some(why), .. }) => warnings.push(format!("a run did not answer: {why}")),
            Ok(answer) => answers.push(answer),
            Err(error) => warnings.push(format!("a run did not answer: {error}")),
        }
    }
    if answers.is_empty() {
        return Err(Failure::new(Code::Finding, warnings.join("; "), "ask again, or ask a file with --from"));
    }
    Ok(Heard { answer: Answer::merge(answers, &question.ask), warnings })
}

const START: &str = "start `sudo inferspan attach -p PID` and ask while it runs, or ask a recording with --from FILE";

fn nobody(folder: &Path, error: &Refused) -> Failure {
    match error {
        Refused::Io { error, .. } if error.kind() == io::ErrorKind::NotFound => {
            let what = format!("no `inferspan attach` or `record` runs here: there is no {}", folder.display());
            Failure::new(Code::NoTarget, what, START)
        }
        Refused::Io { error: why, .. } if why.kind() == io::ErrorKind::PermissionDenied => {
            Failure::new(Code::Permission, format!("runs cannot be asked: {error}"), "ask as root, as they run")
        }
        error => Failure::new(
            Code::Permission,
            format!("runs cannot be asked: {error}"),
            format!("remove it, or name another with {}", socket::VARIABLE),
        ),
    }
}

fn exchange(mut stream: &UnixStream, question: &Question) -> io::Result<Answer> {
    let deadline = Instant::now() + PATIENCE;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let (mut text, mut bytes) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || text.len() as u64 > MAX_ANSWER {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut bytes) {
            Ok(0) => return serde_json::from_slice(&text).map_err(io::Error::from),
            Ok(count) => text.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
