//! A report for a terminal: 80 columns, or fewer.
//!
//! Enters: a [`Report`], whose names are safe to show. Leaves: text.

use std::fmt::Write as _;

use super::slowest::{By, Slow};
use super::steps::{CudaSaid, Durations, StepsSaid};
use super::summary::Latency;
use super::words::{count, maybe, number, percent, seconds};
use super::{FileSaid, Report};
use crate::export::terminal::Style;
use crate::export::terminal::units::{fit, padded, width, wrap};

/// Columns.
pub const WIDTH: usize = 80;
/// Models that have a line.
const MODELS: usize = 8;

/// As `style` says, but for its width: 80 columns are read anywhere.
pub fn render(report: &Report, style: Style) -> String {
    let mut page = Page::new(style);
    page.file(&report.file);
    page.requests(report);
    page.latency(&report.latency);
    page.phases(report);
    page.slowest(&report.slowest);
    if let Some(steps) = &report.steps {
        page.steps(steps);
    }
    page.losses(report);
    page.out
}

/// Lines, none of which is wider than [`WIDTH`].
pub(super) struct Page {
    pub(super) out: String,
    pub(super) style: Style,
}

impl Page {
    pub(super) fn new(style: Style) -> Self {
        Self { out: String::new(), style }
    }

    pub(super) fn line(&mut self, line: &str) {
        self.out.push_str(&fit(line, WIDTH, self.style));
        self.out.push('\n');
    }

    /// In as many lines as it takes, of which further ones stand `by` columns further in.
    pub(super) fn wrapped(&mut self, text: &str, by: usize) {
        for (number, part) in wrap(text, WIDTH - by, self.style).into_iter().enumerate() {
            let by = if number == 0 { 0 } else { by };
            self.line(&format!("{:by$}{part}", ""));
        }
    }

    /// A line that begins with what it is about.
    pub(super) fn titled(&mut self, title: &str, rest: &str) {
        let title = fit(title, WIDTH, self.style);
        let rest = fit(rest, WIDTH - width(&title), self.style);
        let _ = writeln!(self.out, "{}{rest}", self.style.paint(1, &title));
    }

    fn head(&mut self, title: &str, rest: &str) {
        self.out.push('\n');
        self.titled(title, rest);
    }

    fn file(&mut self, file: &FileSaid) {
        let by = file.writer.as_ref().map(|writer| format!(", written by inferspan {writer}")).unwrap_or_default();
        self.line(&file.path);
        self.line(&format!("{}{by}", file.kind));
        if let (Some(from), Some(to), Some(took)) = (&file.from, &file.to, file.seconds) {
            // To the second.
            let short = |at: &str| at.get(..19).unwrap_or(at).replace('T', " ");
            self.line(&format!("{} to {} UTC ({})", short(from), short(to), seconds(took)));
        }
        if let Some(error) = file.clock_uncertainty_seconds {
            self.line(&format!("the engine's clock is known to within {}", seconds(error)));
        }
    }

    fn requests(&mut self, report: &Report) {
        let of = &report.requests;
        let rate = of.per_second.map(|rate| format!(" ({} a second)", number(rate))).unwrap_or_default();
        self.head("Requests", &format!(": {}{rate}", count(of.count)));
        let outcomes: Vec<String> = of.outcomes.iter().map(|of| format!("{} {}", count(of.count), of.what)).collect();
        if !outcomes.is_empty() {
            self.line(&format!("  {}", outcomes.join(", ")));
        }
        if of.open > 0 {
            self.line(&format!("  {} more were open when it ended", count(of.open)));
        }
        let rate = of.output_tokens_per_second.map(|rate| format!(" ({} a second)", number(rate))).unwrap_or_default();
        self.line(&format!(
            "  prompt tokens {} ({} cached), output tokens {}{rate}",
            count(of.prompt_tokens),
            count(of.cached_tokens),
            count(of.output_tokens)
        ));
        if of.preemptions > 0 {
            self.line(&format!("  preempted {} times", count(of.preemptions)));
        }
        self.line(&format!(
            "  {:<30}{:>9}{:>9}{:>14}{:>14}",
            "model", "requests", "not well", "ttft p50", "a token p50"
        ));
        for model in of.models.iter().take(MODELS) {
            self.line(&format!(
                "  {} {:>9}{:>9}{:>14}{:>14}",
                padded(&model.model, 29, self.style),
                count(model.requests),
                count(model.not_well),
                maybe(model.ttft_p50),
                maybe(model.per_token_p50)
            ));
        }
        if of.models.len() > MODELS {
            self.line(&format!("  and {} more models", of.models.len() - MODELS));
        }
    }

    fn latency(&mut self, latencies: &[Latency]) {
        self.head("Latency", "");
        let heads = ["count", "p50", "p95", "p99", "max"].map(|head| format!("{head:>9}")).concat();
        self.line(&format!("  {:<12}{heads}", ""));
        for of in latencies {
            let times = [of.p50, of.p95, of.p99, of.max].map(|time| format!("{:>9}", seconds(time))).concat();
            let bars = spark(&of.bars, self.style.unicode);
            self.line(&format!("  {:<12}{:>9}{times} {bars}", shown(of.name), count(of.count)));
        }
        self.line("  (bars: from the smallest to the largest, in equal steps of the logarithm)");
    }

    fn phases(&mut self, report: &Report) {
        let of = &report.phases;
        if of.requests == 0 {
            return;
        }
        let title = format!(": of {} requests, and of {}", count(of.requests), of.slowest_said());
        self.head("Where the time went", &title);
        for phase in &of.phases {
            let bar = |share: f64| "█".repeat((share.clamp(0.0, 1.0) * 20.0).round() as usize);
            let line = format!(
                "  {:<12}{:>9} {:>7} {:<20} {:>7} {}",
                phase.name,
                seconds(phase.seconds),
                percent(phase.share),
                bar(phase.share),
                percent(phase.slowest_share),
                bar(phase.slowest_share)
            );
            self.line(line.trim_end());
        }
    }

    fn slowest(&mut self, slowest: &[Slow]) {
        for (by, title) in [(By::FirstToken, "Longest to the first token"), (By::PerToken, "Slowest for each token")] {
            let of: Vec<&Slow> = slowest.iter().filter(|slow| slow.by == by).collect();
            if of.is_empty() {
                continue;
            }
            self.head(title, "");
            for slow in of {
                self.slow(slow);
            }
        }
    }

    fn slow(&mut self, slow: &Slow) {
        let tokens = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), count);
        let id = slow.trace_id.get(..8).unwrap_or(&slow.trace_id);
        self.line(&format!(
            "  {id}  ttft {}, a token {}, e2e {}; {} to {} tokens, {}",
            maybe(slow.ttft),
            maybe(slow.per_token),
            maybe(slow.e2e),
            tokens(slow.prompt_tokens),
            tokens(slow.output_tokens),
            slow.outcome
        ));
        for line in wrap(&slow.why.said, WIDTH - 12, self.style) {
            self.line(&format!("            {line}"));
        }
    }

    fn steps(&mut self, of: &StepsSaid) {
        self.head("Engine steps", &format!(": {} of {}", count(of.count), of.engines_said()));
        let mut said =
            vec![format!("tokens: {} of prompts, {} of answers", count(of.prefill_tokens), count(of.decode_tokens))];
        said.extend(of.kv_cache_usage_max.map(|usage| format!("KV cache at most {}", percent(usage))));
        self.line(&format!("  {}", said.join("; ")));
        if let (Some(running), Some(waiting)) = (of.running_max, of.waiting_max) {
            self.line(&format!("  at most {} running and {} waiting", count(running), count(waiting)));
        }
        let heads = ["count", "total", "p50", "p95", "p99", "max"].map(|head| format!("{head:>9}")).concat();
        self.line(&format!("  {:<18}{heads}", ""));
        for (what, kind) in of.rows() {
            self.durations(&what, kind);
        }
        if let Some(cuda) = &of.cuda {
            self.cuda(cuda);
        }
    }

    fn durations(&mut self, what: &str, of: &Durations) {
        let times = [of.seconds, of.p50, of.p95, of.p99, of.max].map(|time| format!("{:>9}", seconds(time))).concat();
        self.line(&format!("  {what:<18}{:>9}{times}", count(of.count)));
    }

    fn cuda(&mut self, of: &CudaSaid) {
        self.head("CUDA", &format!(": in {} steps", count(of.steps)));
        self.line(&format!("  {} kernels and {} graphs launched", count(of.launches), count(of.graph_launches)));
        let gap = format!("{} ({} of the steps' time)", seconds(of.gap_seconds), percent(of.gap_share()));
        self.line(&format!("  gaps between launches {gap}"));
        let waits = format!("{} in {} waits of all threads", seconds(of.wait_seconds), count(of.waits));
        self.line(&format!("  {waits}"));
        let modes: Vec<String> = of.modes.iter().map(|(mode, n)| format!("{} {mode}", count(*n))).collect();
        if !modes.is_empty() {
            self.line(&format!("  steps by mode: {}", modes.join(", ")));
        }
        if of.fell_back > 0 {
            self.line(&format!("  {} steps ran without the graph that such batches had", count(of.fell_back)));
        }
        for (kernel, n) in &of.top_kernels {
            self.line(&format!("  {:>12} × {}", count(*n), fit(kernel, 60, self.style)));
        }
        if of.unnamed_launches > 0 {
            self.line(&format!("  {:>12} × kernels that are too many to be told apart", count(of.unnamed_launches)));
        }
    }

    fn losses(&mut self, report: &Report) {
        self.head("What is missing", "");
        let mut is_whole = true;
        for of in &report.incomplete {
            self.line(&format!("  {:>9} requests: {}", count(of.count), of.what));
            is_whole = false;
        }
        if report.requests.left_out > 0 {
            self.line(&format!(
                "  {} requests are in no distribution and no sum: too many",
                count(report.requests.left_out)
            ));
            is_whole = false;
        }
        for loss in &report.losses {
            for line in wrap(&loss.said, WIDTH - 2, self.style) {
                self.line(&format!("  {line}"));
            }
            is_whole = false;
        }
        if is_whole {
            self.line("  nothing that is known of");
        }
    }
}

/// What a distribution is called.
pub fn shown(name: &str) -> &str {
    match name {
        "inter_token" => "inter-token",
        "per_token" => "a token",
        name => name,
    }
}

/// A bar of a character each.
fn spark(bars: &[(f64, u64)], unicode: bool) -> String {
    let levels: Vec<char> =
        if unicode { "▁▂▃▄▅▆▇█".chars().collect() } else { "1234567#".chars().collect() };
    let most = bars.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let level = |count: u64| (count as f64 / most as f64 * levels.len() as f64).ceil() as usize;
    bars.iter()
        .map(|(_, count)| if *count == 0 { ' ' } else { levels[level(*count).clamp(1, levels.len()) - 1] })
        .collect()
}
