//! What the tests' timelines are made of.

use super::*;

/// One step of a timeline.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A call, or a piece of one, of which only so many bytes were captured.
    Call {
        direction: Direction,
        bytes: Vec<u8>,
        seen: usize,
        starts: bool,
    },
    Lost(Direction, Option<u64>),
    Closed,
}

pub(super) fn call(direction: Direction, bytes: impl AsRef<[u8]>) -> Step {
    let bytes = bytes.as_ref().to_vec();
    Step::Call { direction, seen: bytes.len(), bytes, starts: true }
}

pub(super) fn read(bytes: impl AsRef<[u8]>) -> Step {
    call(Direction::In, bytes)
}

pub(super) fn write(bytes: impl AsRef<[u8]>) -> Step {
    call(Direction::Out, bytes)
}

/// The first `head` and the last `tail` bytes of a call; without a tail, the first alone.
pub(super) fn capped(step: Step, head: usize, tail: usize) -> Vec<Step> {
    let Step::Call { direction, bytes, .. } = step else { panic!() };
    let (first, last) = bytes.split_at(bytes.len() - tail);
    let piece = |bytes: &[u8], seen, starts| Step::Call { direction, bytes: bytes.to_vec(), seen, starts };
    let mut pieces = vec![piece(first, head, true)];
    if tail > 0 {
        pieces.push(piece(last, tail, false));
    }
    pieces
}

pub(super) fn play(conversation: &mut Conversation, steps: &[Step]) -> Vec<HttpEvent> {
    let mut out = Vec::new();
    let mut sink = |event| out.push(event);
    for step in steps {
        match step {
            Step::Call { direction, bytes, seen, starts } => {
                let piece = Piece { len: bytes.len() as u64, bytes: &bytes[..*seen], starts: *starts };
                conversation.push(*direction, piece, &mut sink);
            }
            Step::Lost(direction, bytes) => conversation.lost(*direction, *bytes, &mut sink),
            Step::Closed => conversation.closed(&mut sink),
        }
    }
    out
}

pub(super) fn events(steps: &[Step]) -> Vec<HttpEvent> {
    play(&mut Conversation::default(), steps)
}

/// What was said of a request, in short.
pub(super) fn of(events: &[HttpEvent], request: u64) -> String {
    let word = |what: &What| match what {
        What::Started { place } => format!("start@{place}"),
        What::RequestHead(_) => "head".into(),
        What::RequestComplete(f) => {
            if f.whole {
                "asked".into()
            } else {
                "asked?".into()
            }
        }
        What::NoRequest => "none".into(),
        What::ResponseHead { status, .. } => status.to_string(),
        What::Chunk(f) => f.id.clone().unwrap_or_else(|| "chunk".into()),
        What::DoneMark => "done".into(),
        What::Complete(Some(f)) => format!("end({})", f.id.as_deref().unwrap_or_default()),
        What::Complete(None) => "end".into(),
        What::EndUnseen => "unseen".into(),
        What::Gap(Direction::In) => "gap-in".into(),
        What::Gap(Direction::Out) => "gap-out".into(),
    };
    events.iter().filter(|e| e.request == request).map(|e| word(&e.what)).collect::<Vec<_>>().join(" ")
}

pub(super) fn post(name: &str) -> String {
    let body = format!(r#"{{"model":"m","prompt":"{name}","stream":true}}"#);
    format!("POST /v1/completions HTTP/1.1\r\nX-Request-Id: {name}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

pub(super) const SSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
pub(super) const LAST: &str = "0\r\n\r\n";

pub(super) fn chunk(data: &str) -> String {
    format!("{:x}\r\ndata: {data}\n\n\r\n", data.len() + 8)
}

pub(super) fn token(name: &str) -> String {
    chunk(&format!(r#"{{"id":"{name}","choices":[{{"text":"x"}}]}}"#))
}

pub(super) fn json(name: &str) -> [String; 2] {
    let body =
        format!(r#"{{"id":"{name}","choices":[{{"text":"{}"}}],"usage":{{"prompt_tokens":3}}}}"#, "x".repeat(60));
    [format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len()), body]
}

/// A streamed exchange, call by call.
pub(super) fn streamed(name: &str) -> Vec<Step> {
    vec![read(post(name)), write(SSE), write(token(name)), write(token(name)), write(chunk("[DONE]")), write(LAST)]
}

pub(super) fn plain(name: &str) -> Vec<Step> {
    let [head, body] = json(name);
    vec![read(post(name)), write(head), write(body)]
}
