//! The time from its first place in a batch to its first token: its own prompt's, or that of others beside it.

use super::Kind;
use super::case::{int, took, uncached};
use super::judge::{Charge, Judge};
use super::ledger::Ledger;
use super::limits;
use super::words::{count, number, percent, time};
use crate::model::keys::{attribute, event};
use crate::output::Span;

pub(super) fn judge(judge: &mut Judge<'_>) {
    let Some(prefill) = judge.case.prefill else { return };
    let (own, others) = (uncached(prefill), others_tokens(judge, prefill));
    let usual = judge.usual.any();
    let is_long = usual.map_or_else(
        // It was alone, and gave too little to tell what a step takes: most of its time is much for any prompt.
        || took(prefill).saturating_mul(2) >= judge.case.whole(),
        |usual| took(prefill) > usual.saturating_mul(limits::PREFILL_STEPS),
    );
    if !is_long {
        return;
    }
    let excess = took(prefill).saturating_sub(usual.unwrap_or(0));
    let own_share = match own {
        Some(own) if own.saturating_add(others) > 0 => own as f64 / own.saturating_add(others) as f64,
        _ => 0.0,
    };
    let of_others = (excess as f64 * (1.0 - own_share)) as u64;
    if others >= limits::LONG_PROMPT {
        let floor = judge.floor(limits::LEAST, limits::LEAST_SHARE_OF_WORK);
        let charge = Charge { kind: Kind::PrefillOfOthers, inferred: true, floor };
        let claim = |ledger: &mut Ledger| ledger.claim_some(prefill.start_ns, prefill.end_ns, of_others);
        judge.blame(&charge, claim, |_| {
            format!(
                "its prompt ({}) was computed beside {} of other requests'",
                own.map_or("tokens not known".to_owned(), |own| count(own, "token")),
                number(others)
            )
        });
    }
    if own.is_some_and(|own| own >= limits::LONG_PROMPT) && own_share > 0.0 {
        let floor = judge.floor(limits::LEAST, limits::LEAST_SHARE_OF_WORK);
        let charge = Charge { kind: Kind::LongPrefill, inferred: false, floor };
        let most = if judge.blames(Kind::PrefillOfOthers) { excess - of_others.min(excess) } else { u64::MAX };
        let claim = |ledger: &mut Ledger| ledger.claim_some(prefill.start_ns, prefill.end_ns, most);
        judge.blame(&charge, claim, |_| words(prefill));
    }
}

/// Tokens of other prompts that were computed meanwhile: the parts of them that overlap, and what the steps say that none of them explains.
fn others_tokens(judge: &Judge<'_>, prefill: &Span) -> u64 {
    let steps = judge.steps_within(prefill.start_ns, prefill.end_ns).iter();
    let untold = steps.map(|step| judge.others.untold_in(step, judge.case)).fold(0, u64::saturating_add);
    let by_overlap = judge.others.within(prefill.start_ns, prefill.end_ns).map(|(of, overlap)| {
        let whole = of.end_ns.saturating_sub(of.start_ns).max(1);
        (of.tokens.unwrap_or(0) as f64 * (overlap as f64 / whole as f64)) as u64
    });
    by_overlap.fold(untold, u64::saturating_add)
}

fn words(prefill: &Span) -> String {
    let prompt = int(prefill, attribute::PROMPT_TOKENS).unwrap_or(0);
    let cached = int(prefill, attribute::CACHED).unwrap_or(0);
    let from_cache = match cached {
        0 => "none from the prefix cache".to_owned(),
        cached => format!("{} from the prefix cache", percent(cached as f64 / prompt.max(1) as f64)),
    };
    let chunks = prefill.events.iter().filter(|of| of.name == event::PREFILL_CHUNK).count() as u64;
    let chunks = if chunks == 0 { String::new() } else { format!(", in {} chunks", number(chunks + 1)) };
    let each = uncached(prefill).filter(|tokens| *tokens > 0);
    let each = each.map(|tokens| format!(", {} for 1,000", time((took(prefill) / tokens).saturating_mul(1000))));
    format!("prompt of {}, {from_cache}{chunks}{}", count(prompt, "token"), each.unwrap_or_default())
}
