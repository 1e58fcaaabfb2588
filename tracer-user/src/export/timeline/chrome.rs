//! A timeline in the JSON form of Chrome's tracing, one event a line.
//!
//! `X` slices, `i` instants, `C` counters, `s` and `f` arrows, `M` names. Times are µs with three decimals since a midnight that the
//! first event says (unix ns): whole ns of the unix clock do not fit the number that readers make of them. What is no thread gets a thread
//! number above the kernel's highest. The form is the array, not the object with `traceEvents`: of that Perfetto's importer reads nothing
//! when its end is missing, of the array everything up to there.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::mark::{Count, Format, Mark, Note, Slice, Track, TrackId, TrackKind};
use crate::output::Value;

/// The kernel's highest process number is 2^22.
const MADE_UP: u32 = 5_000_000;
const DAY_NS: u64 = 86_400_000_000_000;

/// Where a track is, in the words of this format.
#[derive(Debug, Clone)]
struct Place {
    process: u32,
    thread: u32,
    name: Box<str>,
}

#[derive(Debug, Default)]
pub(super) struct Chrome {
    /// Unix ns.
    base: u64,
    has_events: bool,
    /// As many as there are tracks, which who draws them bounds.
    places: HashMap<TrackId, Place>,
}

impl Format for Chrome {
    fn begin(&mut self, at: u64, out: &mut Vec<u8>) {
        // A day earlier, so that a request that began before midnight is not before the beginning.
        self.base = (at / DAY_NS).saturating_sub(1) * DAY_NS;
        out.push(b'[');
        let args = json!({ "clock": "CLOCK_REALTIME", "unix_ns": self.base });
        self.write(&json!({ "ph": "M", "pid": 0, "name": "zero", "args": args }), out);
    }

    fn mark(&mut self, mark: &Mark<'_>, out: &mut Vec<u8>) {
        match mark {
            Mark::Track(track) => self.track(track, out),
            Mark::Slice(slice) => self.slice(slice, out),
            Mark::Instant { track, at, name, categories } => {
                let mut event = self.event("i", *track, *at);
                event.insert("name".into(), json!(name));
                event.insert("cat".into(), json!(categories.join(",")));
                event.insert("s".into(), json!("t"));
                self.write(&event.into(), out);
            }
            Mark::Count { track, at, value } => {
                let name = self.places.get(track).map(|place| place.name.to_string());
                let mut event = self.event("C", *track, *at);
                // Counters belong to a process; a name of their own keeps them apart.
                event.remove("tid");
                event.insert("name".into(), json!(name));
                let value = match value {
                    Count::Whole(n) => json!(n),
                    Count::Real(x) => json!(x),
                };
                event.insert("args".into(), json!({ "value": value }));
                self.write(&event.into(), out);
            }
            Mark::Arrow { id, from, to } => {
                self.arrow("s", *id, *from, out);
                self.arrow("f", *id, *to, out);
            }
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\n]\n");
    }
}

impl Chrome {
    fn track(&mut self, track: &Track<'_>, out: &mut Vec<u8>) {
        let inherited = track.parent.and_then(|parent| self.places.get(&parent)).map(|place| place.process);
        let made_up = MADE_UP + self.places.len() as u32;
        let is_known = self.places.contains_key(&track.id);
        let (process, thread) = match track.kind {
            TrackKind::Process(process) => (process.unwrap_or(MADE_UP), MADE_UP),
            TrackKind::Thread { process, thread } => (process, thread),
            TrackKind::Plain | TrackKind::Counter { .. } => (inherited.unwrap_or(MADE_UP), made_up),
        };
        if !is_known {
            self.places.insert(track.id, Place { process, thread, name: track.name.into() });
        }
        let what = match track.kind {
            TrackKind::Counter { .. } => return,
            TrackKind::Process(_) => "process",
            TrackKind::Thread { .. } | TrackKind::Plain => "thread",
        };
        let mut event = Map::from_iter([("ph".to_owned(), json!("M")), ("pid".to_owned(), json!(process))]);
        if what == "thread" {
            event.insert("tid".into(), json!(thread));
        }
        for (ending, args) in
            [("name", json!({ "name": track.name })), ("sort_index", json!({ "sort_index": track.rank }))]
        {
            event.insert("name".into(), json!(format!("{what}_{ending}")));
            event.insert("args".into(), args);
            self.write(&event.clone().into(), out);
        }
    }

    fn slice(&mut self, slice: &Slice<'_>, out: &mut Vec<u8>) {
        let mut event = self.event("X", slice.track, slice.start);
        event.insert("dur".into(), micros(slice.end - slice.start));
        event.insert("name".into(), json!(slice.name));
        event.insert("cat".into(), json!(slice.categories.join(",")));
        let notes: Map<String, Json> =
            slice.notes.iter().map(|(key, note)| ((*key).to_owned(), plain(*note))).collect();
        event.insert("args".into(), Json::Object(notes));
        self.write(&event.into(), out);
        let here = (slice.track, slice.start);
        for id in slice.arrows_out {
            self.arrow("s", *id, here, out);
        }
        if let Some(id) = slice.arrow_in {
            self.arrow("f", id, here, out);
        }
    }

    fn arrow(&mut self, phase: &'static str, id: u64, (track, at): (TrackId, u64), out: &mut Vec<u8>) {
        let mut event = self.event(phase, track, at);
        event.insert("name".into(), json!("ac2g"));
        event.insert("cat".into(), json!("ac2g"));
        event.insert("id".into(), json!(format!("{id:#x}")));
        if phase == "f" {
            event.insert("bp".into(), json!("e"));
        }
        self.write(&event.into(), out);
    }

    fn event(&self, phase: &'static str, track: TrackId, at: u64) -> Map<String, Json> {
        let mut event = Map::new();
        event.insert("ph".into(), json!(phase));
        if let Some(place) = self.places.get(&track) {
            event.insert("pid".into(), json!(place.process));
            event.insert("tid".into(), json!(place.thread));
        }
        event.insert("ts".into(), micros(at.saturating_sub(self.base)));
        event
    }

    fn write(&mut self, event: &Json, out: &mut Vec<u8>) {
        out.extend_from_slice(if std::mem::replace(&mut self.has_events, true) { b",\n" } else { b"\n" });
        out.extend_from_slice(event.to_string().as_bytes());
    }
}

fn micros(ns: u64) -> Json {
    json!(ns as f64 / 1e3)
}

fn plain(note: Note<'_>) -> Json {
    match note {
        Note::Value(Value::Bool(is)) => json!(is),
        Note::Value(Value::Int(n)) => json!(n),
        Note::Value(Value::Float(x)) => json!(x),
        Note::Value(Value::Str(text)) => json!(&**text),
        Note::Value(Value::StrList(list)) => list.iter().map(|text| json!(&**text)).collect(),
        Note::Number(n) => json!(n),
        Note::Text(text) => json!(text),
        Note::Hex(handle) => json!(format!("{handle:#x}")),
    }
}
