//! A client that reads slower than the server writes.
//!
//! The engine goes on meanwhile, and its steps are no longer for it: what is lost is what the socket took nothing for behind the last token.
//! Where only the HTTP side is seen, it is not known when that was: all the time that the socket took nothing may be.

use super::Kind;
use super::case::{float, int};
use super::judge::{Charge, Judge};
use super::ledger::Ledger;
use super::limits;
use super::words::{self, count, time};
use crate::model::keys::attribute;
use crate::output::Span;

pub(super) fn judge(judge: &mut Judge<'_>) {
    let root = judge.case.root;
    let Some(blocked) = blocked(root) else { return };
    let last_token = judge.case.last_token();
    // Where its last token is known and nothing says what came behind that, nothing is known to.
    let lost = if last_token.is_some() { behind_last_token(root).unwrap_or(0) } else { blocked };
    let from = last_token.unwrap_or(root.start_ns);
    let floor = judge.floor(limits::LEAST_ON_A_BUSY_HOST, limits::LEAST_SHARE);
    let charge = Charge { kind: Kind::SlowClient, inferred: last_token.is_none(), floor };
    let writes = int(root, attribute::BLOCKED_WRITES).map(|writes| format!("{} had to wait", count(writes, "write")));
    let all = (lost < blocked).then(|| format!("{} in all", time(blocked)));
    let more: Vec<String> = all.into_iter().chain(writes).collect();
    let more = if more.is_empty() { String::new() } else { format!(" ({})", more.join(", ")) };
    let behind = if lost < blocked { " after its last token" } else { "" };
    let claim = |ledger: &mut Ledger| ledger.claim_some(from, root.end_ns, lost);
    judge.blame(&charge, claim, |_| format!("the client's socket took no more bytes for {}{behind}{more}", time(lost)));
}

/// All the time that the socket took nothing, ns.
pub(super) fn blocked(root: &Span) -> Option<u64> {
    float(root, attribute::BLOCKED).map(words::ns)
}

/// The part of it behind the last token of all its engine requests, ns.
pub(super) fn behind_last_token(root: &Span) -> Option<u64> {
    float(root, attribute::BLOCKED_AFTER).map(words::ns)
}
