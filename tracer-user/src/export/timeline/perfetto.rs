//! A timeline as Perfetto's own protobuf trace (`.pftrace`), packet by packet.
//!
//! One sequence of packets. Times are unix ns; a clock snapshot at the front makes the realtime clock the trace's own. Names and repeated
//! words are sent once and then called by number; the tables are bounded, and what finds no room in them is written out. The bytes up to any
//! packet are a trace.

use std::collections::HashMap;

use prost::Message as _;

use super::mark::{Count, Format, Mark, Note, Slice, Track, TrackKind};
use super::proto::{
    Annotation, AnnotationName, AnnotationValue, Clock, ClockSnapshot, Counted, Counter, Defaults, EventType, Interned,
    InternedName, LegacyEvent, NEEDS_STATE, Name, Packet, Process, REALTIME, STATE_CLEARED, Thread, Trace,
    TrackDescriptor, TrackEvent,
};
use crate::output::Value;

/// Any number but 0; there is one writer.
const SEQUENCE: u32 = 1;
/// Entries of each table of words, and their longest, bytes: 2 MB a table at most, and some 100 kB in a real run.
const WORDS: usize = 4096;
const LONGEST_WORD: usize = 512;
/// Keys whose values do not come again.
const UNIQUE: [&str; 3] = [
    crate::model::keys::attribute::RESPONSE_ID,
    crate::model::keys::attribute::ENGINE_REQUEST_ID,
    super::requests::TRACE_ID,
];

/// What both ends of an arrow are called, which is how the importer pairs them.
const ARROW: &str = "served by";

#[derive(Debug, Default)]
struct Words {
    known: HashMap<Box<str>, u64>,
    news: Vec<InternedName>,
}

impl Words {
    /// The number of `word`; `None` when there is no room for it.
    fn number(&mut self, word: &str) -> Option<u64> {
        if let Some(&iid) = self.known.get(word) {
            return Some(iid);
        }
        if self.known.len() >= WORDS || word.len() > LONGEST_WORD {
            return None;
        }
        let iid = self.known.len() as u64 + 1;
        self.known.insert(word.into(), iid);
        self.news.push(InternedName { iid: Some(iid), name: Some(word.to_owned()) });
        Some(iid)
    }
}

#[derive(Debug, Default)]
pub(super) struct Perfetto {
    names: Words,
    categories: Words,
    keys: Words,
    values: Words,
}

impl Format for Perfetto {
    /// The packet that says which clock the times are of, and that no words were sent before.
    fn begin(&mut self, at: u64, out: &mut Vec<u8>) {
        let clocks = vec![Clock { clock_id: Some(REALTIME), timestamp: Some(at) }];
        write(
            Packet {
                clock_snapshot: Some(ClockSnapshot { clocks, primary_trace_clock: Some(REALTIME) }),
                sequence_flags: Some(STATE_CLEARED),
                trace_packet_defaults: Some(Defaults { timestamp_clock_id: Some(REALTIME) }),
                ..Packet::default()
            },
            out,
        );
    }

    fn mark(&mut self, mark: &Mark<'_>, out: &mut Vec<u8>) {
        match mark {
            Mark::Track(track) => describe(track, out),
            Mark::Slice(slice) => self.slice(slice, out),
            Mark::Instant { track, at, name, categories } => {
                let mut event = self.event(*track, EventType::Instant, categories);
                event.name = Some(self.name(name));
                self.send(*at, event, out);
            }
            Mark::Count { track, at, value } => {
                let counted = match *value {
                    Count::Whole(n) => Counted::Whole(i64::try_from(n).unwrap_or(i64::MAX)),
                    Count::Real(x) => Counted::Real(x),
                };
                let mut event = self.event(*track, EventType::Counter, &[]);
                event.counted = Some(counted);
                self.send(*at, event, out);
            }
            Mark::Arrow { id, from, to } => {
                for (phase, (track, at)) in [(b's', from), (b'f', to)] {
                    let mut event = self.event(*track, EventType::Unspecified, &[]);
                    event.r#type = None;
                    event.name = Some(self.name(ARROW));
                    let phase = Some(i32::from(phase));
                    event.legacy_event =
                        Some(LegacyEvent { phase, unscoped_id: Some(*id), bind_to_enclosing: Some(true) });
                    self.send(*at, event, out);
                }
            }
        }
    }

    fn end(&mut self, _out: &mut Vec<u8>) {}
}

impl Perfetto {
    fn slice(&mut self, slice: &Slice<'_>, out: &mut Vec<u8>) {
        // A slice that is over at once is one packet.
        let kind = if slice.end > slice.start { EventType::Begin } else { EventType::Instant };
        let mut event = self.event(slice.track, kind, slice.categories);
        event.name = Some(self.name(slice.name));
        event.debug_annotations = slice.notes.iter().map(|(key, note)| self.note(key, *note)).collect();
        event.flow_ids = slice.arrows_out.to_vec();
        event.terminating_flow_ids = slice.arrow_in.into_iter().collect();
        self.send(slice.start, event, out);
        if kind == EventType::Begin {
            let event = self.event(slice.track, EventType::End, &[]);
            self.send(slice.end, event, out);
        }
    }

    fn event(&mut self, track: u64, kind: EventType, categories: &[&str]) -> TrackEvent {
        let mut event = TrackEvent { r#type: Some(kind as i32), track_uuid: Some(track), ..TrackEvent::default() };
        for category in categories {
            match self.categories.number(category) {
                Some(iid) => event.category_iids.push(iid),
                None => event.categories.push((*category).to_owned()),
            }
        }
        event
    }

    fn name(&mut self, name: &str) -> Name {
        self.names.number(name).map_or_else(|| Name::Text(name.to_owned()), Name::Iid)
    }

    fn note(&mut self, key: &str, note: Note<'_>) -> Annotation {
        let name = match self.keys.number(key) {
            Some(iid) => AnnotationName::Iid(iid),
            None => AnnotationName::Text(key.to_owned()),
        };
        let is_unique = UNIQUE.contains(&key);
        let mut annotation = Annotation { name: Some(name), ..Annotation::default() };
        let mut text = |text: &str| {
            let iid = if is_unique { None } else { self.values.number(text) };
            iid.map_or_else(|| AnnotationValue::Text(text.to_owned()), AnnotationValue::TextIid)
        };
        annotation.value = match note {
            Note::Value(Value::Bool(is)) => Some(AnnotationValue::Bool(*is)),
            Note::Value(Value::Int(n)) => Some(AnnotationValue::Int(*n)),
            Note::Value(Value::Float(x)) => Some(AnnotationValue::Double(*x)),
            Note::Value(Value::Str(word)) => Some(text(word)),
            Note::Value(Value::StrList(words)) => {
                let of = |word| Annotation { value: Some(text(word)), ..Annotation::default() };
                annotation.array_values = words.iter().map(|word| &**word).map(of).collect();
                None
            }
            Note::Number(n) => Some(AnnotationValue::Uint(n)),
            Note::Text(word) => Some(text(word)),
            Note::Hex(handle) => Some(AnnotationValue::Pointer(handle)),
        };
        annotation
    }

    fn send(&mut self, at: u64, event: TrackEvent, out: &mut Vec<u8>) {
        let interned = Interned {
            event_categories: std::mem::take(&mut self.categories.news),
            event_names: std::mem::take(&mut self.names.news),
            debug_annotation_names: std::mem::take(&mut self.keys.news),
            debug_annotation_string_values: std::mem::take(&mut self.values.news),
        };
        write(
            Packet {
                timestamp: Some(at),
                track_event: Some(event),
                interned_data: (interned != Interned::default()).then_some(interned),
                sequence_flags: Some(NEEDS_STATE),
                ..Packet::default()
            },
            out,
        );
    }
}

fn describe(track: &Track<'_>, out: &mut Vec<u8>) {
    let name = Some(track.name.to_owned());
    let number = |n: u32| i32::try_from(n).ok();
    let mut descriptor = TrackDescriptor {
        uuid: Some(track.id),
        parent_uuid: track.parent,
        child_ordering: Some(3),
        sibling_order_rank: Some(track.rank),
        sibling_merge_behavior: Some(2),
        ..TrackDescriptor::default()
    };
    match track.kind {
        TrackKind::Process(Some(process)) => {
            descriptor.process = Some(Process { pid: number(process), name });
        }
        TrackKind::Thread { process, thread } => {
            descriptor.thread = Some(Thread { pid: number(process), tid: number(thread), name });
        }
        TrackKind::Process(None) | TrackKind::Plain => descriptor.name = name,
        TrackKind::Counter { unit } => {
            descriptor.name = name;
            descriptor.counter = Some(match unit {
                "bytes" => Counter { unit: Some(3), unit_name: None },
                unit => Counter { unit: None, unit_name: Some(unit.to_owned()) },
            });
        }
    }
    write(Packet { track_descriptor: Some(descriptor), ..Packet::default() }, out);
}

fn write(packet: Packet, out: &mut Vec<u8>) {
    let packet = Packet { trusted_packet_sequence_id: Some(SEQUENCE), ..packet };
    // A file is one message of packets, so what is encoded one by one is the file.
    if let Err(error) = (Trace { packet: vec![packet] }).encode(out) {
        unreachable!("a vector grows: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_sent_once_and_a_full_table_takes_no_more() {
        let mut words = Words::default();
        assert_eq!([words.number("a"), words.number("b"), words.number("a")], [Some(1), Some(2), Some(1)]);
        assert_eq!(std::mem::take(&mut words.news).len(), 2);
        assert_eq!(words.number(&"x".repeat(LONGEST_WORD + 1)), None);
        for n in 0..WORDS {
            words.number(&n.to_string());
        }
        assert_eq!((words.known.len(), words.number("new"), words.number("b")), (WORDS, None, Some(2)));
    }
}
