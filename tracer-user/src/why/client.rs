//! A client that reads slower than the server writes.
//!
//! The engine goes on meanwhile, so what is lost is what came behind its last token. Where only the HTTP side is seen, that is not known,
//! and all the time that the socket took nothing is.

use super::Kind;
use super::case::{float, int};
use super::judge::{Charge, Judge};
use super::limits;
use super::words::{self, count, time};
use crate::model::keys::attribute;

pub(super) fn judge(judge: &mut Judge<'_>) {
    let root = judge.case.root;
    let Some(blocked) = float(root, attribute::BLOCKED).map(words::ns) else { return };
    let from = judge.case.last_token().unwrap_or(root.start_ns);
    let floor = judge.floor(limits::LEAST_ON_A_BUSY_HOST, limits::LEAST_SHARE);
    let charge = Charge { kind: Kind::SlowClient, inferred: false, floor };
    let writes = int(root, attribute::BLOCKED_WRITES);
    let writes = writes.map(|writes| format!(" ({} had to wait)", count(writes, "write"))).unwrap_or_default();
    let claim = |ledger: &mut super::ledger::Ledger| ledger.claim_some(from, root.end_ns, blocked);
    judge.blame(&charge, claim, |_| format!("the client's socket took no more bytes for {}{writes}", time(blocked)));
}
