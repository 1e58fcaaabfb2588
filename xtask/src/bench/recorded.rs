//! How many socket events a second the pipeline takes on one core, of a recorded load.
//!
//! Enters: the recorded captures of a real vLLM. They are repeated with times, engine stamps and request ids shifted, so
//! that every repetition is new requests at a later time. Leaves: events a second over several runs of
//! `inferspan replay`; fails when the median is below [`FLOOR`].
//!
//! Judged by the CPU time that the process used (user and system) rather than by the clock, so that a neighbour on a shared
//! machine does not fail the build; on an idle core the two are the same, and both are printed.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::measured;
use crate::{build, shell};

/// Socket events a second on one core that the product promises.
const FLOOR: f64 = 200_000.0;
/// Events in the log: enough that the start of the process is below a percent of the run.
const EVENTS: usize = 400_000;
const RUNS: usize = 5;
/// Quiet time between two repetitions, seconds.
const PAUSE: f64 = 1.0;
/// Captures of one boot of one machine, so that one clock offset fits all: wall and monotonic times shift together.
const CAPTURES: [&str; 4] = ["v0.32_chat_stream", "v0.32_logprobs_stop_abort", "v0.32_preempt", "v0.32_api2"];

pub(super) fn run(inferspan: &Path) -> Result<()> {
    let log = build::target_folder().join("bench/replay.jsonl");
    let events = shell::step(&format!("writing a log of {EVENTS} events"), || write_log(&log))?;
    let core = measured::last_core()?;
    let mut cpu_rates = Vec::new();
    for run in 1..=RUNS {
        let mut command = measured::on_core(&core, inferspan);
        command.arg("replay").arg(&log).args(["--access-log", "/dev/null"]);
        let measured::Used { wall, cpu, .. } = measured::run(&mut command)?;
        eprintln!(
            "xtask: run {run}: {events} events, {wall:.2} s ({:.0}/s), {cpu:.2} s of CPU ({:.0}/s)",
            events as f64 / wall,
            events as f64 / cpu
        );
        cpu_rates.push(events as f64 / cpu);
    }
    fs::remove_file(&log).with_context(|| format!("cannot remove {}", log.display()))?;
    cpu_rates.sort_by(f64::total_cmp);
    let (min, median, max) = (cpu_rates[0], cpu_rates[RUNS / 2], cpu_rates[RUNS - 1]);
    println!(
        "replay: min {min:.0}, median {median:.0}, max {max:.0} socket events/s on one core ({RUNS} runs of {events} events)"
    );
    if median < FLOOR {
        bail!("the replay takes {median:.0} socket events a second on one core, below the promised {FLOOR:.0}");
    }
    Ok(())
}

/// One call of a capture.
struct Call {
    entered: f64,
    left: f64,
    /// The fields between the times and the payload, as JSON text; the order of a capture's fields is kept.
    middle: String,
    hex: Vec<u8>,
    /// Where in the payload (in bytes, two digits each) an eight-digit random end of a request id starts.
    ids: Vec<usize>,
    /// Where in the payload what can be a float64 of msgpack starts, and its value.
    stamps: Vec<(usize, f64)>,
    /// The values of those whose name says that they are stamps.
    named_stamps: Vec<f64>,
}

/// Writes the log and returns its number of events.
fn write_log(path: &Path) -> Result<usize> {
    let calls = read_captures()?;
    let first = calls.first().map_or(0.0, |call| call.entered);
    let last = calls.last().map_or(0.0, |call| call.left);
    let shift = last - first + PAUSE;
    let folder = path.parent().context("the log has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let context = || format!("cannot write {}", path.display());
    let mut out = BufWriter::new(File::create(path).with_context(context)?);
    writeln!(out, "{{\"note\": \"captures of vLLM 0.32.0, repeated by cargo xtask bench replay\"}}")
        .with_context(context)?;
    let repetitions = EVENTS.div_ceil(calls.len());
    for repetition in 0..repetitions {
        for call in &calls {
            call.write_shifted(&mut out, shift * repetition as f64, repetition).with_context(context)?;
        }
    }
    out.flush().with_context(context)?;
    Ok(repetitions * calls.len())
}

fn read_captures() -> Result<Vec<Call>> {
    let mut calls = Vec::new();
    for name in CAPTURES {
        let path: PathBuf = shell::root().join(format!("tests/fixtures/captures/{name}.jsonl.gz"));
        let text = shell::output(Command::new("gzip").args(["--decompress", "--stdout"]).arg(&path))?;
        for line in text.lines() {
            let value: Value =
                serde_json::from_str(line).with_context(|| format!("{} holds no JSON", path.display()))?;
            if value.get("note").is_none() {
                calls.push(
                    Call::parse(value)
                        .with_context(|| format!("{} holds something else than calls", path.display()))?,
                );
            }
        }
    }
    calls.sort_by(|a, b| a.entered.total_cmp(&b.entered));
    let windows = clock_windows(&calls);
    for call in &mut calls {
        call.stamps.retain(|(_, value)| windows.iter().any(|window| window.contains(value)));
    }
    if calls.is_empty() {
        bail!("the captures hold no calls");
    }
    Ok(calls)
}

/// The ranges that a float must lie in to be a clock: the engine's monotonic one (from the stamps that have a name) and the
/// wall's.
fn clock_windows(calls: &[Call]) -> [std::ops::Range<f64>; 2] {
    // A message can carry a stamp of some time before the first call.
    const MARGIN: f64 = 30.0;
    let named = || calls.iter().flat_map(|call| call.named_stamps.iter().copied());
    let low = named().fold(f64::INFINITY, f64::min);
    let high = named().fold(f64::NEG_INFINITY, f64::max);
    let wall = (calls.first().map_or(0.0, |call| call.entered), calls.last().map_or(0.0, |call| call.left));
    [low - MARGIN..high + MARGIN, wall.0 - MARGIN..wall.1 + MARGIN]
}

impl Call {
    fn parse(value: Value) -> Option<Self> {
        const STAMP_NAME: &[u8] = b"timestamp";
        let Value::Object(mut fields) = value else { return None };
        let entered = fields.remove("t0")?.as_f64()?;
        let left = fields.remove("t1")?.as_f64()?;
        let hex = fields.remove("hex")?.as_str()?.to_owned();
        let bytes = from_hex(&hex)?;
        let mut middle = String::new();
        for name in ["tid", "sc", "fd", "sock", "n"] {
            let _ = write!(middle, "\"{name}\": {}, ", fields.remove(name)?);
        }
        for (name, value) in fields {
            let _ = write!(middle, "\"{name}\": {value}, ");
        }
        let mut stamps = Vec::new();
        let mut named_stamps = Vec::new();
        // A msgpack float64 is the marker 0xcb and eight bytes, big end first.
        for marker in (0..bytes.len()).filter(|&at| bytes[at] == 0xcb) {
            let Some(value) = bytes.get(marker + 1..marker + 9).and_then(|value| value.try_into().ok()) else {
                continue;
            };
            let value = f64::from_be_bytes(value);
            stamps.push((marker + 1, value));
            if bytes[..marker].ends_with(STAMP_NAME) {
                named_stamps.push(value);
            }
        }
        let ids = random_ends(&bytes);
        Some(Self { entered, left, middle, hex: hex.into_bytes(), ids, stamps, named_stamps })
    }

    /// Writes the call as a line of the log, `seconds` later, with its request ids made unique to `repetition`.
    fn write_shifted(&self, out: &mut impl Write, seconds: f64, repetition: usize) -> std::io::Result<()> {
        let mut hex = self.hex.clone();
        for (at, value) in &self.stamps {
            put_hex(&mut hex, *at, &(value + seconds).to_be_bytes());
        }
        for at in &self.ids {
            // The first four digits stay, so that ids of one repetition stay apart.
            put_hex(&mut hex, at + 4, format!("{:04x}", repetition & 0xffff).as_bytes());
        }
        write!(
            out,
            "{{\"t0\": {}, \"t1\": {}, {}\"hex\": \"",
            self.entered + seconds,
            self.left + seconds,
            self.middle
        )?;
        out.write_all(&hex)?;
        out.write_all(b"\"}\n")
    }
}

/// Where the random ends of request ids (`cmpl-c0-0-9d73da47`) start.
fn random_ends(bytes: &[u8]) -> Vec<usize> {
    const NAME: &[u8] = b"cmpl-";
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(offset) = bytes.get(at..).and_then(|rest| rest.windows(NAME.len()).position(|window| window == NAME))
    {
        let start = at + offset;
        let end = start + bytes[start..].iter().take_while(|&&byte| word(byte)).count();
        if let Some(dash) = bytes[start..end].iter().rposition(|&byte| byte == b'-') {
            // The byte after an id can be one of its alphabet by chance, so only the first eight digits are looked at.
            let random = start + dash + 1;
            let digits = bytes[random..end].iter().take(8).filter(|byte| byte.is_ascii_hexdigit()).count();
            if digits == 8 {
                found.push(random);
            }
        }
        at = end.max(start + NAME.len());
    }
    found
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

/// Replaces the payload's bytes from the byte `at` on.
fn put_hex(hex: &mut [u8], at: usize, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in hex[2 * at..].as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_repetition_is_later_and_has_ids_of_its_own() {
        let mut bytes = b"\xb2cmpl-c0-0-9d73da47\xa9timestamp\xcb".to_vec();
        bytes.extend(1998.25_f64.to_be_bytes());
        let mut hex = vec![b'0'; 2 * bytes.len()];
        put_hex(&mut hex, 0, &bytes);
        let hex = String::from_utf8(hex).unwrap();
        let line = json!({"t0": 10.0, "t1": 10.5, "tid": 7, "sc": "sendto", "fd": 3, "sock": "a", "n": 1, "hex": hex});
        let call = Call::parse(line).unwrap();
        assert_eq!(call.named_stamps, [1998.25]);

        let mut written = Vec::new();
        call.write_shifted(&mut written, 100.0, 0x1f).unwrap();
        let line: Value = serde_json::from_slice(&written).unwrap();
        let times = (line["t0"].as_f64(), line["t1"].as_f64(), line["tid"].as_u64());
        assert_eq!(times, (Some(110.0), Some(110.5), Some(7)));
        let shifted = from_hex(line["hex"].as_str().unwrap()).unwrap();
        assert!(shifted.windows(18).any(|window| window == b"cmpl-c0-0-9d73001f"));
        assert!(shifted.ends_with(&2098.25_f64.to_be_bytes()));
        assert_eq!(shifted.len(), bytes.len());
    }

    #[test]
    fn ids_without_a_random_end_are_left_alone() {
        assert!(random_ends(b"{\"id\":\"cmpl-c0-0\"} cmpl-").is_empty());
    }
}
