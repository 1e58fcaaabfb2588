//! Two files against each other: which phase moved.
//!
//! Enters: the rows of two files. Leaves: a [`Diff`]: each model's phases, with how they moved and between what bounds. Like is compared with like: a
//! model with itself, requests that went well, and where prompts or answers differ in length the time for each of their tokens. Invariant:
//! nothing is called slower or faster where the bounds of the shift have zero between them, or where it is smaller than [`Smallest`] says. What
//! moved because a part of it did is not told twice.

use serde::Serialize;

use super::rows::{MAX_MODELS, MAX_ROWS, Row, Rows};
use super::samples::Samples;
use super::shift::{self, CONFIDENCE, Shift};
use super::words::{count, number};
use super::{FileSaid, LossSaid};

/// The form of the JSON.
pub const SCHEMA: &str = "inferspan.diff/1";
/// Median lengths that differ by more than this share are not alike, and rates by more than that one.
const LENGTHS_ALIKE: f64 = 0.1;
const RATES_ALIKE: f64 = 0.2;
/// What a loss is called where a file has models that are not told apart.
pub const MODELS_OVER: &str = "models_over";
/// Of the quantile that stands for the slow ones.
const TAIL: f64 = 0.95;

/// The smallest change that is told.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Smallest {
    /// As a share of what it was before, 0 to 1.
    pub share: f64,
    /// Seconds of a request; of a token there is none.
    pub seconds: f64,
}

/// What a file brings.
#[derive(Debug)]
pub struct Side {
    pub file: FileSaid,
    pub rows: Rows,
    pub losses: Vec<LossSaid>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    pub schema: &'static str,
    pub a: FileSaid,
    pub b: FileSaid,
    /// Of every interval.
    pub confidence: f64,
    pub smallest: Smallest,
    pub models: Vec<ModelDiff>,
    /// Models; where the other file has some that are not told apart (`models_over` in its losses), it may have these, too.
    pub only_in_a: Vec<String>,
    pub only_in_b: Vec<String>,
    pub findings: Vec<Finding>,
    pub losses_a: Vec<LossSaid>,
    pub losses_b: Vec<LossSaid>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelDiff {
    pub model: String,
    /// That went well, and all.
    pub compared_a: u64,
    pub compared_b: u64,
    pub requests_a: u64,
    pub requests_b: u64,
    /// Where the two are not alike, each a sentence without a full stop.
    pub warnings: Vec<String>,
    pub phases: Vec<PhaseDiff>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseDiff {
    pub name: &'static str,
    pub unit: Unit,
    pub a: Numbers,
    pub b: Numbers,
    /// Of B's requests above A's; null where there are too few.
    pub shift: Option<Shift>,
    /// Of B's 95th percentile above A's.
    pub tail: Option<Shift>,
    /// Null where it is not compared: too few, or not alike.
    pub verdict: Option<Verdict>,
    /// The phases that it moved with.
    pub by: Vec<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Of a request.
    Seconds,
    /// Divided by the prompt's tokens that were computed.
    SecondsAPromptToken,
    /// Divided by the answer's tokens behind the first.
    SecondsAToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Numbers {
    pub count: u64,
    pub median: Option<f64>,
    pub p95: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Same,
    Slower,
    Faster,
    /// The slowest twentieth alone.
    TailSlower,
    TailFaster,
}

/// Something that moved by itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    pub model: String,
    pub phase: &'static str,
    pub unit: Unit,
    pub verdict: Verdict,
    pub shift: Shift,
    /// Of what it was before.
    pub share: f64,
}

impl Verdict {
    pub fn is_slower(self) -> bool {
        matches!(self, Self::Slower | Self::TailSlower)
    }

    pub fn words(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Slower => "slower",
            Self::Faster => "faster",
            Self::TailSlower => "p95 slower",
            Self::TailFaster => "p95 faster",
        }
    }
}

/// What a phase is compared by.
struct Compared {
    name: &'static str,
    unit: Unit,
    of: fn(&Row) -> Option<f64>,
    /// What it is made of: it is no finding where one of these moved the same way.
    parts: &'static [&'static str],
    /// It says nothing where prompts, or answers, differ in length.
    needs: Alike,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alike {
    Nothing,
    Prompts,
    Answers,
    Both,
}

/// Phases before the sums of them.
const COMPARED: [Compared; 8] = [
    phase("tokenize", |row| row.times.tokenize, Alike::Prompts),
    phase("queue", |row| row.times.queue, Alike::Nothing),
    phase("prefill", |row| row.times.prefill, Alike::Nothing),
    Compared { name: "per_token", unit: Unit::SecondsAToken, ..phase("", |row| row.times.per_token, Alike::Nothing) },
    phase("detokenize", |row| row.times.detokenize, Alike::Answers),
    Compared { parts: &["per_token"], ..phase("decode", |row| row.times.decode, Alike::Answers) },
    Compared { parts: &["tokenize", "queue", "prefill"], ..phase("ttft", |row| row.times.ttft, Alike::Prompts) },
    Compared {
        parts: &["tokenize", "queue", "prefill", "per_token", "decode", "detokenize", "ttft"],
        ..phase("e2e", |row| row.times.e2e, Alike::Both)
    },
];

const fn phase(name: &'static str, of: fn(&Row) -> Option<f64>, needs: Alike) -> Compared {
    Compared { name, unit: Unit::Seconds, of, parts: &[], needs }
}

/// Where prompts differ in length: the time for each token of them that was computed.
const PREFILL_A_TOKEN: Compared = Compared {
    unit: Unit::SecondsAPromptToken,
    ..phase("prefill", |row| Some(row.times.prefill? / row.uncached().filter(|n| *n > 0)? as f64), Alike::Nothing)
};

pub fn compare(a: Side, b: Side, smallest: Smallest) -> Diff {
    let mut names: Vec<&String> =
        a.rows.named().map(|(_, name)| name).filter(|name| b.rows.place(name).is_some()).collect();
    names.sort_unstable();
    let models: Vec<ModelDiff> = names.into_iter().map(|name| model(&a, &b, name, smallest)).collect();
    let only = |of: &Rows, other: &Rows| {
        of.named().map(|(_, name)| name).filter(|name| other.place(name).is_none()).cloned().collect()
    };
    let findings = models.iter().flat_map(findings).collect();
    let losses = |side: &Side| [left_out(&side.rows), side.losses.clone()].concat();
    Diff {
        schema: SCHEMA,
        confidence: CONFIDENCE,
        smallest,
        findings,
        models,
        only_in_a: only(&a.rows, &b.rows),
        only_in_b: only(&b.rows, &a.rows),
        losses_a: losses(&a),
        losses_b: losses(&b),
        a: a.file,
        b: b.file,
    }
}

/// What of a file is not compared.
fn left_out(rows: &Rows) -> Vec<LossSaid> {
    let others = rows.rows.iter().filter(|row| Some(row.model) == rows.others).count() as u64;
    let all = [
        ("requests_over", rows.over, format!("over the first {}", count(MAX_ROWS as u64))),
        (MODELS_OVER, others, format!("of models over the first {MAX_MODELS}, which are not told apart")),
    ];
    let told = all.into_iter().filter(|(_, left_out, _)| *left_out > 0);
    told.map(|(what, left_out, which)| {
        let said = format!("{} requests are not compared: {which}", count(left_out));
        LossSaid { what, count: left_out, said }
    })
    .collect()
}

/// The rows of a model of a file.
fn of_model<'r>(side: &'r Side, name: &str) -> (Vec<&'r Row>, u64) {
    let at = side.rows.place(name);
    let all = || side.rows.rows.iter().filter(move |row| Some(row.model) == at);
    (all().filter(|row| row.went_well()).collect(), all().count() as u64)
}

fn model(a: &Side, b: &Side, name: &str, smallest: Smallest) -> ModelDiff {
    let ((rows_a, requests_a), (rows_b, requests_b)) = (of_model(a, name), of_model(b, name));
    let lengths = |of: fn(&Row) -> Option<u64>| {
        let median =
            |rows: &[&Row]| rows.iter().filter_map(|row| of(row)).map(|n| n as f64).collect::<Samples>().median();
        (median(&rows_a), median(&rows_b))
    };
    let (prompts, answers) = (lengths(Row::uncached), lengths(|row| row.output_tokens));
    let rate = |side: &Side, n: u64| {
        // Where requests were left out nobody knows whose they were.
        side.file.seconds.filter(|s| *s > 0.0 && side.rows.over == 0).map(|s| n as f64 / s)
    };
    let rates = (rate(a, requests_a), rate(b, requests_b));
    let mut warnings = Vec::new();
    let mut alike = |(a, b): (Option<f64>, Option<f64>), within: f64, words: &str| {
        let Some((a, b)) = a.zip(b) else { return true };
        let is_alike = (a - b).abs() <= within * a.abs().max(b.abs());
        if !is_alike {
            warnings.push(format!("{words}: {} in A, {} in B", number(a), number(b)));
        }
        is_alike
    };
    let prompts = alike(prompts, LENGTHS_ALIKE, "prompt tokens to compute differ, so prefill is by token");
    let answers = alike(answers, LENGTHS_ALIKE, "output tokens differ, so decode is by token");
    alike(rates, RATES_ALIKE, "requests a second differ, and with them queues and batches");
    let mut phases: Vec<PhaseDiff> = Vec::new();
    for compared in &COMPARED {
        let compared = if compared.name == "prefill" && !prompts { &PREFILL_A_TOKEN } else { compared };
        let is_alike = match compared.needs {
            Alike::Nothing => true,
            Alike::Prompts => prompts,
            Alike::Answers => answers,
            Alike::Both => prompts && answers,
        };
        let found = phase_diff(compared, (&rows_a, &rows_b), is_alike, smallest, &phases);
        phases.extend(found);
    }
    let (compared_a, compared_b) = (rows_a.len() as u64, rows_b.len() as u64);
    ModelDiff { model: name.to_owned(), compared_a, compared_b, requests_a, requests_b, warnings, phases }
}

/// `None` where neither file knows it.
fn phase_diff(
    compared: &Compared,
    (rows_a, rows_b): (&[&Row], &[&Row]),
    is_alike: bool,
    smallest: Smallest,
    before: &[PhaseDiff],
) -> Option<PhaseDiff> {
    let samples = |rows: &[&Row]| rows.iter().filter_map(|row| (compared.of)(row)).collect::<Samples>();
    let (a, b) = (samples(rows_a), samples(rows_b));
    if a.count() + b.count() == 0 {
        return None;
    }
    let numbers = |of: &Samples| Numbers { count: of.count() as u64, median: of.median(), p95: of.quantile(TAIL) };
    let (shift, tail) = (shift::shift(&a, &b), shift::of_quantile(&a, &b, TAIL));
    let least = Smallest { seconds: if compared.unit == Unit::Seconds { smallest.seconds } else { 0.0 }, ..smallest };
    let verdict = shift.filter(|_| is_alike).map(|shift| judge(shift, a.median(), tail, a.quantile(TAIL), least));
    let moved = |of: &&PhaseDiff| {
        compared.parts.contains(&of.name)
            && of.verdict.zip(verdict).is_some_and(|(part, whole)| {
                part != Verdict::Same && whole != Verdict::Same && part.is_slower() == whole.is_slower()
            })
    };
    let by = before.iter().filter(moved).map(|of| of.name).collect();
    Some(PhaseDiff {
        name: compared.name,
        unit: compared.unit,
        a: numbers(&a),
        b: numbers(&b),
        shift,
        tail,
        verdict,
        by,
    })
}

fn judge(shift: Shift, median: Option<f64>, tail: Option<Shift>, p95: Option<f64>, least: Smallest) -> Verdict {
    let matters = |shift: Shift, before: Option<f64>| {
        let least = least.seconds.max(before.unwrap_or(0.0) * least.share);
        shift.excludes_zero() && shift.estimate.abs() >= least
    };
    if matters(shift, median) {
        return if shift.estimate > 0.0 { Verdict::Slower } else { Verdict::Faster };
    }
    match tail.filter(|tail| matters(*tail, p95)) {
        Some(tail) if tail.estimate > 0.0 => Verdict::TailSlower,
        Some(_) => Verdict::TailFaster,
        None => Verdict::Same,
    }
}

/// What moved, and not because a part of it did.
fn findings(of: &ModelDiff) -> Vec<Finding> {
    let finding = |phase: &PhaseDiff| {
        let verdict = phase.verdict.filter(|verdict| *verdict != Verdict::Same && phase.by.is_empty())?;
        let (shift, before) = match verdict {
            Verdict::TailSlower | Verdict::TailFaster => (phase.tail?, phase.a.p95?),
            _ => (phase.shift?, phase.a.median?),
        };
        let share = if before > 0.0 { shift.estimate / before } else { f64::INFINITY };
        Some(Finding { model: of.model.clone(), phase: phase.name, unit: phase.unit, verdict, shift, share })
    };
    of.phases.iter().filter_map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Outcome, RequestSeconds};
    use crate::recall::{About, Kind};

    const SMALLEST: Smallest = Smallest { share: 0.02, seconds: 50e-6 };

    /// A file of 100 s with `each` requests to each of the models `of`, whose prefill takes `prefill`.
    fn side(of: impl Iterator<Item = u32>, each: u32, prefill: f64) -> Side {
        let mut rows = Rows::default();
        for model in of {
            for n in 0..each {
                rows.take(&crate::output::AccessRecord {
                    model: Some(format!("m{model}")),
                    outcome: Outcome::Stop,
                    seconds: RequestSeconds {
                        prefill: Some(prefill * (1.0 + f64::from(n) / 1e4)),
                        ..RequestSeconds::default()
                    },
                    ..crate::export::access_log::tests::record()
                });
            }
        }
        let about = About {
            kind: Kind::Traces,
            writer: None,
            span_ns: Some((0, 100_000_000_000)),
            servers: 1,
            uncertainty_ns: None,
            losses: vec![],
        };
        Side { file: FileSaid::of("file", &about), rows, losses: vec![] }
    }

    fn told(losses: &[LossSaid]) -> Vec<(&'static str, u64)> {
        losses.iter().map(|loss| (loss.what, loss.count)).collect()
    }

    #[test]
    fn models_that_are_not_told_apart_are_told_and_not_compared() {
        // A: models 0 to 99, ten requests each │ B: 30 to 129, each ten times as slow │ of each the first 64 are told apart
        let diff = compare(side(0..100, 10, 0.01), side(30..130, 10, 0.1), SMALLEST);
        assert!(diff.models.iter().all(|of| of.model != "(others)"));
        assert_eq!((diff.models.len(), diff.findings.len()), (34, 34), "30 to 63 are in both");
        assert_eq!((told(&diff.losses_a), told(&diff.losses_b)), (vec![(MODELS_OVER, 360)], vec![(MODELS_OVER, 360)]));
        assert!(diff.only_in_a.contains(&"m0".to_owned()) && diff.only_in_b.contains(&"m93".to_owned()));
        let style = crate::export::terminal::Style { color: false, unicode: true, width: 80, has_cursor: false };
        let text = crate::report::compare_text::render(&diff, style);
        assert!(text.contains("in A alone, or among B's that are not told apart: m0"), "{text}");
        assert!(text.contains("missing in A: 360 requests are not compared: of models over the first 64"), "{text}");
    }

    #[test]
    fn a_model_that_a_client_calls_as_the_others_are_called_is_a_model() {
        let named = |side: &mut Side| side.rows.models[0] = "(others)".to_owned();
        let (mut a, mut b) = (side(0..70, 10, 0.01), side(0..70, 10, 0.1));
        named(&mut a);
        named(&mut b);
        let diff = compare(a, b, SMALLEST);
        let others: Vec<_> = diff.models.iter().filter(|of| of.model == "(others)").collect();
        assert_eq!((others.len(), others[0].requests_a, others[0].requests_b), (1, 10, 10));
    }

    #[test]
    fn of_requests_that_are_too_many_no_rate_is_known() {
        // A: 10 requests │ B: 20, and 50 that were not kept
        let (a, mut b) = (side(0..1, 10, 0.01), side(0..1, 20, 0.01));
        let rates = |diff: &Diff| diff.models[0].warnings.iter().any(|said| said.starts_with("requests a second"));
        assert!(rates(&compare(a, side(0..1, 20, 0.01), SMALLEST)));
        b.rows.over = 50;
        let diff = compare(side(0..1, 10, 0.01), b, SMALLEST);
        assert!(!rates(&diff), "{:?}", diff.models[0].warnings);
        assert_eq!((told(&diff.losses_a), told(&diff.losses_b)), (vec![], vec![("requests_over", 50)]));
    }
}
