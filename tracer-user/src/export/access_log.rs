//! The access log: one JSON object a line for every request that is over. The fields are those of docs/signals.md.
//!
//! JSON escapes control characters by itself; what else a terminal could be fooled with (bidi overrides in a path) is
//! escaped as `\uXXXX` too, which a JSON reader turns back into the same text.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::Pressure;
use super::lines::{Fate, Lines};
use super::log_file::LogFile;
use super::sink::{Context, Sink};
use super::stdout::{self, Stdout};
use serde::Serialize;

use crate::out_file::Existing;
use crate::output::AccessRecord;
use crate::sanitise;

/// Records that wait for the file at most; about 1 kB each.
const QUEUE_RECORDS: u64 = 8192;

#[derive(Debug)]
struct AccessLog {
    lines: Lines<AccessRecord>,
    is_stdout: bool,
}

impl Sink for AccessLog {
    fn access(&mut self, record: &Arc<AccessRecord>) {
        self.lines.push(record, 1);
    }

    fn is_unread(&self) -> bool {
        self.is_stdout && stdout::is_closed()
    }

    fn finish(self: Box<Self>) -> Option<String> {
        self.lines.finish()
    }
}

/// Whether it goes to stdout.
pub fn takes_stdout(path: Option<&Path>) -> bool {
    path == Some(Path::new("-"))
}

pub fn open(context: &Context<'_>) -> anyhow::Result<Option<Box<dyn Sink>>> {
    let Some(path) = context.flags.access_log.as_deref() else { return Ok(None) };
    let is_stdout = takes_stdout(Some(path));
    let out: Box<dyn io::Write + Send> = if is_stdout {
        Box::new(Stdout::default())
    } else {
        // A live log goes on where the run before ended; a replay's is that replay's.
        let existing = if context.pressure == Pressure::Drop { Existing::Kept } else { Existing::Dropped };
        Box::new(LogFile::open(path, "the access log", existing, context.reopen)?)
    };
    let telemetry = Arc::clone(context.telemetry);
    let count = move |fate, records| {
        let counter = match fate {
            Fate::Written => return,
            Fate::QueueFull => &telemetry.access_dropped_queue,
            Fate::WriteFailed => &telemetry.access_dropped_write,
        };
        counter.fetch_add(records, Relaxed);
    };
    let about = format!("access log {}", path.display());
    let lines = Lines::start(about, "records", out, QUEUE_RECORDS, context.pressure, count, write)?;
    Ok(Some(Box::new(AccessLog { lines, is_stdout })))
}

/// Appends `record` to `line` as JSON.
pub fn write(record: &impl Serialize, line: &mut Vec<u8>) -> io::Result<()> {
    let text = serde_json::to_string(record)?;
    line.extend_from_slice(sanitise::json(&text).as_bytes());
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::output::{
        FinishReason, GenerationRecord, GenerationSeconds, Incomplete, Outcome, RequestSeconds, SpanId, TraceId,
        UnixNanos,
    };
    use crate::sanitise::is_unsafe;

    pub(crate) fn record() -> AccessRecord {
        AccessRecord {
            v: 1,
            // 2026-11-24T03:52:11.123456789Z
            time: UnixNanos(1_795_492_331_123_456_789),
            trace_id: TraceId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef_u128.to_be_bytes()),
            span_id: SpanId(0x0123_4567_89ab_cdef_u64.to_be_bytes()),
            request_id: Some("cmpl-1".into()),
            method: Some("POST".into()),
            path: Some("/v1/completions".into()),
            status: Some(200),
            model: Some("m".into()),
            stream: Some(true),
            outcome: Outcome::Length,
            finish_reasons: vec![FinishReason::Length],
            prompt_tokens: Some(12),
            cached_tokens: Some(0),
            output_tokens: Some(34),
            preemptions: Some(0),
            incomplete: Incomplete::default(),
            server: "vllm-42".into(),
            seconds: RequestSeconds {
                queue: Some(0.0001),
                prefill: Some(0.01),
                decode: Some(1.1),
                ttft: Some(0.0123),
                e2e: Some(1.234),
                ..RequestSeconds::default()
            },
            generations: vec![GenerationRecord {
                engine_request_id: "cmpl-1-0".into(),
                finish_reason: Some(FinishReason::Length),
                prompt_tokens: Some(12),
                cached_tokens: Some(0),
                output_tokens: 34,
                preemptions: 0,
                seconds: GenerationSeconds { queue: Some(0.0001), prefill: Some(0.01), decode: Some(1.1) },
            }],
        }
    }

    fn written(record: &AccessRecord) -> String {
        let mut line = Vec::new();
        write(record, &mut line).unwrap();
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_record_is_one_json_object_with_null_for_what_is_unknown() {
        let line = written(&record());
        assert!(!line.contains('\n'));
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["outcome"], "length");
        assert_eq!(json["seconds"]["ttft"], 0.0123);
        assert_eq!(json["seconds"]["parse"], serde_json::Value::Null);
        assert_eq!(json["incomplete"], serde_json::Value::Null);
        assert_eq!(json["generations"][0]["engine_request_id"], "cmpl-1-0");
    }

    #[test]
    fn what_could_fool_a_terminal_is_escaped_and_reads_back_the_same() {
        let path = "/v1/\x1b[2J\u{202e}\u{e0041}\u{9b}é";
        let line = written(&AccessRecord { path: Some(path.into()), ..record() });
        assert!(!line.chars().any(is_unsafe), "{line:?}");
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["path"], path);
    }
}
