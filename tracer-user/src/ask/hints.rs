//! What may have been meant, where nothing has the id that was asked for.

use std::time::Duration;

use super::answer::Source;
use crate::core::view::Stage;
use crate::export::kept::Kept;
use crate::sanitise::sanitise;
use crate::store::Request;

/// Hints that are given.
const MOST: usize = 3;
/// Characters that an id has in common with what was asked to be a hint.
const ALIKE: usize = 4;
/// Of an id that is shown, characters.
const LONGEST: usize = 80;
/// A picture of what is open comes within half a second of being asked for.
const PICTURE: Duration = Duration::from_millis(700);

/// Every id that a request is asked for by.
pub(super) fn ids(request: &Request) -> Vec<String> {
    let record = request.record.as_deref();
    let trace = request.trace.spans.first().map(|root| root.trace_id.to_string());
    let own = record.and_then(|record| record.request_id.clone());
    let engine = record.into_iter().flat_map(|record| &record.generations).map(|of| of.engine_request_id.clone());
    trace.into_iter().chain(own).chain(engine).collect()
}

/// Lines: an open request of that id, or those that are called nearly so, or the newest.
pub(super) fn of(source: &impl Source, id: &str) -> Vec<String> {
    if let Some(open) = source.open(id) {
        return vec![open];
    }
    let (alike, newest) = source.look(|store| {
        let mut alike: Vec<(usize, String)> = Vec::new();
        for request in store.requests().rev() {
            let nearest = ids(request).into_iter().map(|known| (common(&known, id), known)).max();
            alike.extend(nearest.filter(|(length, _)| *length >= ALIKE));
        }
        let newest: Vec<String> = store.requests().rev().take(MOST).filter_map(shown).collect();
        (alike, newest)
    });
    let mut alike = alike;
    alike.sort_by_key(|of| std::cmp::Reverse(of.0));
    alike.dedup();
    let alike: Vec<String> =
        alike.into_iter().take(MOST).map(|(_, known)| format!("perhaps {}", sanitise(&known, LONGEST))).collect();
    if alike.is_empty() { newest.into_iter().map(|known| format!("for example {known}")).collect() } else { alike }
}

fn shown(request: &Request) -> Option<String> {
    let trace = request.trace.spans.first()?.trace_id;
    let own = request.record.as_deref().and_then(|record| record.request_id.as_deref());
    let own = own.map(|own| format!(" ({})", sanitise(own, LONGEST))).unwrap_or_default();
    Some(format!("{trace}{own}"))
}

fn common(one: &str, other: &str) -> usize {
    let same = |(a, b): &(u8, u8)| a.eq_ignore_ascii_case(b);
    one.bytes().zip(other.bytes()).take_while(same).count()
}

/// Looks whether it is open still.
pub(super) fn open(kept: &Kept, id: &str) -> Option<String> {
    kept.ask_for_now();
    std::thread::sleep(PICTURE);
    let now = kept.now()?;
    let (server, request) = now.servers.iter().find_map(|server| {
        let request = server.open.iter().find(|open| open.id.as_deref() == Some(id))?;
        Some((server, request))
    })?;
    let stage = match request.stage {
        Stage::FrontEnd => "in the front end",
        Stage::Waiting => "with the engine, which gave nothing yet",
        Stage::Producing => "giving tokens",
        Stage::Finishing => "finishing",
    };
    let seconds = server.now.saturating_sub(request.since) as f64 / 1e9;
    Some(format!("it is still open: {stage}, since {seconds:.1} s; ask again when it is over"))
}
