//! The front end: the tokenizer, and what it takes up late.

use super::Kind;
use super::case::{float, int, is_inferred, took};
use super::client;
use super::judge::{Charge, Judge};
use super::ledger::Ledger;
use super::limits;
use super::usual::took_of;
use super::words::{self, count, time};
use crate::model::keys::attribute;

/// Until the engine has the request.
pub(super) fn judge_before(judge: &mut Judge<'_>) {
    if let Some(tokenize) = judge.case.tokenize {
        let tokens = int(tokenize, attribute::PROMPT_TOKENS).map(|tokens| format!(" of {}", count(tokens, "token")));
        // What no probe saw may be the front end's own time as well.
        let share = if is_inferred(tokenize) { limits::LEAST_SHARE_OF_WORK } else { limits::LEAST_SHARE };
        let floor = judge.floor(limits::LEAST_ON_A_BUSY_HOST, share);
        let charge = Charge { kind: Kind::SlowTokenizer, inferred: is_inferred(tokenize), floor };
        let evidence = format!("tokenizing a prompt{} took {}", tokens.unwrap_or_default(), time(took(tokenize)));
        judge.blame(&charge, |ledger| ledger.claim(tokenize.start_ns, tokenize.end_ns), |_| evidence);
    }
    if let Some(parse) = judge.case.parse {
        let from = judge.case.root.start_ns;
        let waited = float(judge.case.root, attribute::HTTP_WAITED).map_or(0, words::ns);
        let charge = Charge { kind: Kind::Pipelined, ..late(judge, false) };
        judge.blame(
            &charge,
            |ledger| ledger.claim(parse.start_ns.saturating_sub(waited).max(from), parse.start_ns),
            |taken| format!("{} for the answer to the request before it on its connection", time(taken)),
        );
        let charge = Charge { kind: Kind::SlowRequest, ..late(judge, false) };
        judge.blame(
            &charge,
            |ledger| ledger.claim(from, parse.start_ns),
            |taken| format!("{} from its first byte to the whole request: sent slowly, or read slowly", time(taken)),
        );
        let others = judge.tokenizing.overlap(parse.start_ns, parse.end_ns);
        if others as f64 >= took(parse) as f64 * limits::WAIT_BEHIND_PROMPT {
            let floor = judge.floor(limits::LEAST_ON_A_BUSY_HOST, limits::LEAST_SHARE);
            let charge = Charge { kind: Kind::SlowTokenizer, inferred: true, floor };
            let evidence = "its prompt waited while those of other requests were tokenized";
            judge.blame(&charge, |ledger| ledger.claim(parse.start_ns, parse.end_ns), |_| evidence.to_owned());
        } else {
            let charge = late(judge, is_inferred(parse));
            let claim = |ledger: &mut Ledger| ledger.claim(parse.start_ns, parse.end_ns);
            judge.blame(&charge, claim, |taken| format!("{} from the whole request to its tokenizing", time(taken)));
        }
    }
    send(judge);
}

/// From its tokens to the engine's queue. An engine takes requests in before every step, so that what is longer than some steps is the front
/// end's; a step that lasts so long is the engine's.
fn send(judge: &mut Judge<'_>) {
    let Some(from) = judge.case.tokenize.or(judge.case.parse).map(|of| of.end_ns) else { return };
    let Some(to) = judge.case.waits_for("admission").next().map(|wait| wait.start_ns) else { return };
    let longest = judge.steps_within(from, to).iter().map(|step| took_of(step)).max().unwrap_or(0);
    let usual = judge.usual.any().unwrap_or(0).max(longest).saturating_mul(limits::WAIT_STEPS);
    let charge = late(judge, true);
    let charge = Charge { floor: charge.floor.max(usual), ..charge };
    judge.blame(
        &charge,
        |ledger| ledger.claim(from, to),
        |taken| format!("{} from its tokens to the engine's queue", time(taken)),
    );
}

fn late(judge: &Judge<'_>, inferred: bool) -> Charge {
    let floor = judge.floor(limits::LEAST_ON_A_BUSY_HOST, limits::LEAST_SHARE);
    Charge { kind: Kind::FrontEndLate, inferred, floor }
}

/// From the engine's outputs on. A front end that waits for its client takes outputs up late by that: what the client is to blame for is
/// taken off, of what came behind the last token only what the client took nothing for there.
pub(super) fn judge_after(judge: &mut Judge<'_>) {
    let (root, last_token) = (judge.case.root, judge.case.last_token());
    let blocked = client::blocked(root).unwrap_or(0);
    let behind = client::behind_last_token(root).unwrap_or(blocked);
    // Of several engine requests they are of all, and one is judged.
    let is_one = judge.case.generations == 1;
    let lag = |key, blocked: u64| float(root, key).filter(|_| is_one).map_or(0, words::ns).saturating_sub(blocked);
    let last = lag(attribute::LAST_LAG, behind);
    if let Some(at) = last_token.filter(|_| last > 0) {
        let charge = late(judge, false);
        let claim = |ledger: &mut Ledger| ledger.claim(at, at.saturating_add(last));
        judge.blame(&charge, claim, |taken| {
            format!("its last output was taken up {} after the engine sent it", time(taken))
        });
    }
    let first = lag(attribute::FIRST_LAG, blocked);
    let first_token = judge.case.decode.map(|decode| decode.start_ns).or(last_token);
    if let Some(at) = first_token.filter(|_| first > 0) {
        let charge = late(judge, false);
        let claim = |ledger: &mut Ledger| ledger.claim(at, at.saturating_add(first));
        judge.blame(&charge, claim, |taken| {
            format!("its first output was taken up {} after the engine sent it", time(taken))
        });
    }
    let most = lag(attribute::MAX_LAG, blocked);
    if let Some(decode) = judge.case.decode.filter(|_| most > first.max(last)) {
        let charge = late(judge, false);
        let claim = |ledger: &mut Ledger| ledger.claim_some(decode.start_ns, decode.end_ns, most);
        judge.blame(&charge, claim, |_| format!("outputs were taken up as much as {} late", time(most)));
    }
    if let Some(detokenize) = judge.case.detokenize.filter(|of| took(of) > behind) {
        let charge = late(judge, is_inferred(detokenize));
        let claim = |ledger: &mut Ledger| ledger.claim(detokenize.start_ns, detokenize.end_ns);
        judge.blame(&charge, claim, |taken| format!("{} from its last output to the last byte written", time(taken)));
    }
}
