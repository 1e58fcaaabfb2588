//! A request that did not go well.

use super::Kind;
use super::case::text;
use super::judge::{Charge, Judge};
use crate::model::keys::attribute;
use crate::output::Outcome;

pub(super) fn judge(judge: &mut Judge<'_>) {
    if judge.case.outcome != Some(Outcome::Error) {
        return;
    }
    let root = judge.case.root;
    let error = text(root, attribute::ERROR_TYPE).unwrap_or_default();
    let (evidence, inferred) = match error {
        "engine_error" => ("the engine said that the request failed".to_owned(), false),
        "server_exited" => ("the server's process ended before the response did".to_owned(), false),
        // An answer of 5xx: whose fault it was, the server does not say.
        status if status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit()) => {
            (format!("the server answered {status}"), true)
        }
        _ => ("the server closed the connection before the response was over".to_owned(), true),
    };
    let charge = Charge { kind: Kind::EngineError, inferred, floor: 0 };
    let from = judge.case.last_token().unwrap_or(root.start_ns);
    judge.blame(&charge, |ledger| ledger.claim(from, root.end_ns), |_| evidence);
}
