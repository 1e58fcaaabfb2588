//! The closing summary: of each model requests by outcome, rates and quantiles of its times; then the requests that are worth a drawing,
//! and why each took so long.
//!
//! Enters: records, traces and metrics. Leaves: text that fits the terminal. Bounded: [`MAX_MODELS`] models by themselves, histograms of
//! bounded size, a few traces of each model ([`super::slow`]).

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use super::quantiles::Quantiles;
use super::slow::{Medians, Slow, Told, each_token, first_token};
use super::units::{fit, rate};
use super::{Style, duration, waterfall, wrap};
use crate::output::{AccessRecord, Metric, Outcome, Service, Trace};

/// Models that are told apart; the rest counts as one.
const MAX_MODELS: usize = 8;
/// What the rest is called, and requests that name none.
const OTHERS: &str = "other models";
const NO_MODEL: &str = "no model named";
/// Records whose traces have not come: they come one behind the other.
const MAX_WAITING: usize = 64;

/// Collects while the run goes on.
#[derive(Debug, Default)]
pub struct Digest {
    models: BTreeMap<Arc<str>, Model>,
    /// By the engines' own names of models.
    inter_token: BTreeMap<Arc<str>, Quantiles>,
    waiting: VecDeque<Arc<AccessRecord>>,
    slow: Slow,
}

#[derive(Debug, Default)]
struct Model {
    outcomes: BTreeMap<Outcome, u64>,
    incomplete: u64,
    output_tokens: u64,
    /// From the first byte of the first request to the end of the last, unix ns.
    from_ns: Option<u64>,
    to_ns: u64,
    queue: Quantiles,
    ttft: Quantiles,
    e2e: Quantiles,
    /// What requests are compared with.
    first: Quantiles,
    each: Quantiles,
}

impl Digest {
    pub fn record(&mut self, record: &Arc<AccessRecord>) {
        let name = self.name_of(record);
        let model = self.models.entry(name).or_default();
        *model.outcomes.entry(record.outcome).or_default() += 1;
        model.incomplete += u64::from(!record.incomplete.is_whole());
        model.output_tokens += record.output_tokens.unwrap_or(0);
        let seconds = &record.seconds;
        let began = record.time.0.saturating_sub((seconds.e2e.unwrap_or(0.0).max(0.0) * 1e9) as u64);
        model.from_ns = Some(model.from_ns.map_or(began, |from| from.min(began)));
        model.to_ns = model.to_ns.max(record.time.0);
        model.queue.add(seconds.queue);
        model.ttft.add(seconds.ttft);
        model.e2e.add(seconds.e2e);
        if record.outcome != Outcome::Rejected {
            model.first.add(first_token(record));
            model.each.add(each_token(record));
        }
        if self.waiting.len() == MAX_WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Arc::clone(record));
    }

    /// The model that a request counts as.
    fn name_of(&self, record: &AccessRecord) -> Arc<str> {
        let name = record.model.as_deref().unwrap_or(NO_MODEL);
        match self.models.get_key_value(name) {
            Some((name, _)) => Arc::clone(name),
            None if self.models.len() < MAX_MODELS => name.into(),
            None => OTHERS.into(),
        }
    }

    /// Behind its record.
    pub fn trace(&mut self, trace: &Arc<Trace>) {
        let Some(root) = trace.spans.first().filter(|_| trace.service == Service::Requests) else { return };
        let is_its = |record: &Arc<AccessRecord>| (record.trace_id, record.span_id) == (root.trace_id, root.span_id);
        let Some(at) = self.waiting.iter().rposition(is_its) else { return };
        let Some(record) = self.waiting.remove(at) else { return };
        self.slow.add(&self.name_of(&record), &record, trace);
    }

    pub fn metric(&mut self, metric: &Metric) {
        match metric {
            Metric::Tokens { labels, inter_token: Some(seconds), .. } => {
                if let Some(times) = self.inter_token.get_mut(&labels.model) {
                    times.add(Some(*seconds));
                } else if self.inter_token.len() < MAX_MODELS {
                    self.inter_token.entry(Arc::clone(&labels.model)).or_default().add(Some(*seconds));
                }
            }
            Metric::ModelKnown { model, .. } => {
                if let Some(times) = self.inter_token.remove("unknown") {
                    self.inter_token.entry(Arc::clone(model)).or_default().merge(times);
                }
            }
            _ => {}
        }
    }

    /// Requests recorded.
    pub fn requests(&self) -> u64 {
        self.models.values().flat_map(|model| model.outcomes.values()).sum()
    }

    /// The whole summary, with a line end; empty when there was nothing. `explain` says why a request took as long as it did.
    pub fn render(&self, style: Style, explain: impl Fn(&Trace) -> Told) -> String {
        let requests = self.requests();
        if requests == 0 {
            return String::new();
        }
        let mut out = String::new();
        let title = if requests == 1 { "1 request".to_owned() } else { format!("{requests} requests") };
        let mut outcomes = BTreeMap::new();
        for (outcome, count) in self.models.values().flat_map(|model| &model.outcomes) {
            *outcomes.entry(*outcome).or_default() += count;
        }
        let incomplete = self.models.values().map(|model| model.incomplete).sum();
        // The title is bold, wherever the line breaks behind it.
        let counts = wrap(&format!("{title}: {}", ended(&outcomes, incomplete)), style.width, style).join("\n");
        let _ = writeln!(out, "\n{}{}", style.paint(1, &title), counts.strip_prefix(&title).unwrap_or(&counts));
        for (name, model) in &self.models {
            self.render_model(name, model, style, &mut out);
        }
        let medians = |name: &str| {
            let model = self.models.get(name);
            let median = |of: fn(&Model) -> &Quantiles| model.and_then(|model| of(model).at(0.5));
            Medians { first: median(|model| &model.first), each: median(|model| &model.each) }
        };
        for drawn in self.slow.pick(medians, explain) {
            let _ = writeln!(out, "\n{}", style.paint(1, &fit(&drawn.title, style.width, style)));
            out.push_str(&waterfall::render(&drawn.candidate.trace, style));
            for line in wrap(&drawn.told.text, style.width.saturating_sub(2), style) {
                let _ = writeln!(out, "  {line}");
            }
        }
        out
    }

    fn render_model(&self, name: &Arc<str>, model: &Model, style: Style, out: &mut String) {
        let count: u64 = model.outcomes.values().sum();
        let seconds = model.from_ns.map_or(0.0, |from| model.to_ns.saturating_sub(from) as f64 / 1e9);
        let mut about = fit(name, 40, style);
        if count > 1 && seconds > 0.0 {
            let (requests, tokens) = (count as f64 / seconds, model.output_tokens as f64 / seconds);
            let _ = write!(about, ": {} req/s, {} tok/s in {}", rate(requests), rate(tokens), duration(seconds));
        }
        let _ = writeln!(out, "  {}", fit(&about, style.width.saturating_sub(2), style));
        if self.models.len() > 1 {
            for line in wrap(&ended(&model.outcomes, model.incomplete), style.width.saturating_sub(4), style) {
                let _ = writeln!(out, "    {line}");
            }
        }
        // The engines' names are the servers' own; a request may name an adapter, or nothing.
        let only = (self.models.len() == 1 && self.inter_token.len() == 1).then(|| self.inter_token.values().next());
        let inter_token = self.inter_token.get(name).or(only.flatten());
        let all = [0.5, 0.95, 0.99];
        for (what, quantiles, shares) in [
            ("queue", Some(&model.queue), &[0.5, 0.99][..]),
            ("ttft", Some(&model.ttft), &all[..]),
            ("inter-token", inter_token, &[0.5, 0.99][..]),
            ("e2e", Some(&model.e2e), &all[..]),
        ] {
            let Some(quantiles) = quantiles.filter(|quantiles| quantiles.at(0.5).is_some()) else { continue };
            let _ = write!(out, "    {what:<11}");
            for share in all {
                let value = shares.contains(&share).then(|| quantiles.at(share)).flatten();
                let shown =
                    value.map_or_else(String::new, |value| format!("p{:.0} {}", share * 100.0, duration(value)));
                let _ = write!(out, "  {shown:<10}");
            }
            out.truncate(out.trim_end().len());
            out.push('\n');
        }
    }
}

/// How requests ended: `2 stop, 1 length (1 incomplete)`.
fn ended(outcomes: &BTreeMap<Outcome, u64>, incomplete: u64) -> String {
    let counts: Vec<_> = outcomes.iter().map(|(outcome, count)| format!("{count} {}", outcome.name())).collect();
    let mut out = counts.join(", ");
    if incomplete > 0 {
        let _ = write!(out, " ({incomplete} incomplete)");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::PLAIN;
    use super::super::units::width;
    use super::*;
    use crate::export::access_log::tests::record;
    use crate::output::{Incomplete, Labels, Missing};

    fn told(_: &Trace) -> Told {
        Told { kind: None, text: "why it took so long".repeat(20) }
    }

    #[test]
    fn the_summary_counts_by_outcome_and_says_the_quantiles_of_each_model() {
        let mut digest = Digest::default();
        digest.record(&Arc::new(record()));
        let incomplete = Incomplete::from_iter([Missing::AttachedLate]);
        digest.record(&Arc::new(AccessRecord { outcome: Outcome::Stop, incomplete, ..record() }));
        digest.record(&Arc::new(AccessRecord { outcome: Outcome::Stop, ..record() }));
        let labels = Labels { server: "s".into(), model: "unknown".into(), engine: 0 };
        digest.metric(&Metric::Tokens { labels, tokens: 1, inter_token: Some(0.02) });
        digest.metric(&Metric::ModelKnown { server: "s".into(), model: "m".into() });
        assert_eq!(
            digest.render(PLAIN, told),
            "\n3 requests: 2 stop, 1 length (1 incomplete)\n\
             \x20 m: 2.4 req/s, 82.7 tok/s in 1.23s\n\
             \x20   queue        p50 100us               p99 100us\n\
             \x20   ttft         p50 12.3ms  p95 12.3ms  p99 12.3ms\n\
             \x20   inter-token  p50 20.0ms              p99 20.0ms\n\
             \x20   e2e          p50 1.23s   p95 1.23s   p99 1.23s\n"
        );
    }

    #[test]
    fn models_are_told_apart_up_to_a_bound_and_no_line_is_wider_than_the_terminal() {
        let mut digest = Digest::default();
        for nth in 0..100 {
            let model = Some(format!("模型 {nth} {}", "x".repeat(60)));
            digest.record(&Arc::new(AccessRecord { model, ..record() }));
        }
        assert_eq!((digest.requests(), digest.models.len()), (100, MAX_MODELS + 1));
        for columns in [60, 80, 120] {
            let text = digest.render(Style { width: columns, ..PLAIN }, told);
            assert!(text.lines().all(|line| width(line) <= columns), "{text}");
            assert!(text.contains("  other models: ") && text.contains("    92 length\n"), "{text}");
        }
    }

    #[test]
    fn nothing_seen_is_nothing_said() {
        assert_eq!(Digest::default().render(PLAIN, told), "");
    }
}
