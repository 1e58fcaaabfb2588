//! A report as a page that needs nothing else: no script, no file, no network.
//!
//! Enters: a [`Report`]. Leaves: HTML. Invariant: every string is escaped ([`escape`]); what is not is numbers and fixed words.

use std::fmt::Write as _;

use super::slowest::{By, Slow};
use super::steps::{CudaSaid, Durations, StepsSaid};
use super::summary::Latency;
use super::text::shown;
use super::words::{count, maybe, number, percent, seconds};
use super::{Report, svg};
use crate::model::keys::span;

const STYLE: &str = include_str!("style.css");
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// Text that may stand anywhere in a page.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

pub fn render(report: &Report) -> String {
    let title = escape(report.file.path.rsplit('/').next().unwrap_or_default());
    let mut body = head(report);
    body.push_str(&latency(&report.latency));
    body.push_str(&phases(report));
    body.push_str(&slowest(&report.slowest));
    body.push_str(&report.steps.as_ref().map(steps).unwrap_or_default());
    body.push_str(&missing(report));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta http-equiv=\"Content-Security-Policy\" \
         content=\"{POLICY}\"/><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"/><title>{title}: inferspan report\
         </title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )
}

fn head(report: &Report) -> String {
    let (file, of) = (&report.file, &report.requests);
    let mut out = format!("<header><h1>{}</h1>", escape(&file.path));
    let by =
        file.writer.as_ref().map(|writer| format!(", written by inferspan {}", escape(writer))).unwrap_or_default();
    let _ = write!(out, "<p class=\"soft\">{}{by}", file.kind);
    if let (Some(from), Some(to), Some(took)) = (&file.from, &file.to, file.seconds) {
        let short = |at: &str| escape(at.get(..19).unwrap_or(at)).replace('T', " ");
        let _ = write!(out, " · {} to {} UTC ({})", short(from), short(to), seconds(took));
    }
    if let Some(error) = file.clock_uncertainty_seconds {
        let _ = write!(out, " · the engine's clock is known to within {}", seconds(error));
    }
    out.push_str("</p><div class=\"facts\">");
    let rate = |rate: Option<f64>, what: &str| {
        rate.map_or(what.to_owned(), |rate| format!("{what}, {} a second", number(rate)))
    };
    let find = |name: &str| report.latency.iter().find(|of| of.name == name);
    let p50 = |name| maybe(find(name).map(|of| of.p50));
    let not_well = of.models.iter().map(|model| model.not_well).sum::<u64>();
    for (value, what) in [
        (count(of.count), rate(of.per_second, "requests")),
        (count(not_well), "not ended by stop or length".to_owned()),
        (count(of.output_tokens), rate(of.output_tokens_per_second, "output tokens")),
        (p50("ttft"), "first token, median".to_owned()),
        (p50("inter_token"), "between tokens, median".to_owned()),
        (count(of.preemptions), "preemptions".to_owned()),
    ] {
        let _ = write!(out, "<div class=\"fact\"><b>{value}</b><span>{what}</span></div>");
    }
    out.push_str("</div></header>");
    out.push_str(&requests(report));
    out
}

fn requests(report: &Report) -> String {
    let of = &report.requests;
    let mut said: Vec<String> = of.outcomes.iter().map(|of| format!("{} {}", count(of.count), of.what)).collect();
    if of.open > 0 {
        said.push(format!("{} still open at the end", count(of.open)));
    }
    let mut out = format!("<section><h2>Requests</h2><p>{}</p>", said.join(" · "));
    let _ = write!(
        out,
        "<p class=\"soft\">{} prompt tokens ({} cached), {} output tokens</p>",
        count(of.prompt_tokens),
        count(of.cached_tokens),
        count(of.output_tokens)
    );
    out.push_str("<div class=\"wide\"><table><thead><tr><th>model</th>");
    for head in ["requests", "not well", "prompt tokens", "output tokens", "first token p50", "a token p50"] {
        let _ = write!(out, "<th>{head}</th>");
    }
    out.push_str("</tr></thead><tbody>");
    for model in &of.models {
        let bad = if model.not_well > 0 { " class=\"bad\"" } else { "" };
        let _ = write!(
            out,
            "<tr><td class=\"name\">{}</td><td>{}</td><td{bad}>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&model.model),
            count(model.requests),
            count(model.not_well),
            count(model.prompt_tokens),
            count(model.output_tokens),
            maybe(model.ttft_p50),
            maybe(model.per_token_p50)
        );
    }
    out.push_str("</tbody></table></div></section>");
    out
}

fn heads(heads: &[&str]) -> String {
    format!("<th>{}</th>", heads.join("</th><th>"))
}

fn latency(latencies: &[Latency]) -> String {
    let heads = heads(&["", "count", "p50", "p95", "p99", "max", "distribution"]);
    let mut out = format!("<section><h2>Latency</h2><div class=\"wide\"><table><thead><tr>{heads}</tr></thead><tbody>");
    for of in latencies {
        let _ = write!(out, "<tr><th>{}</th><td>{}</td>", shown(of.name), count(of.count));
        for time in [of.p50, of.p95, of.p99, of.max] {
            let _ = write!(out, "<td>{}</td>", seconds(time));
        }
        let _ = write!(out, "<td>{}</td></tr>", svg::distribution(&of.bars));
    }
    out.push_str("</tbody></table></div><p class=\"soft\">Distributions run from the smallest to the largest, in equal steps of the logarithm.</p></section>");
    out
}

fn phases(report: &Report) -> String {
    let of = &report.phases;
    if of.requests == 0 {
        return String::new();
    }
    let stack = |share: fn(&super::phases::Phase) -> f64| {
        svg::stack(&of.phases.iter().map(|phase| (phase.name, share(phase))).collect::<Vec<_>>())
    };
    let heads = heads(&["phase", "time", "share", "of the slowest"]);
    let mut out = format!(
        "<section><h2>Where the time went</h2><p>Of {} requests, {} together</p>{}<p>Of {} of them, {} together</p>{}\
         <div class=\"wide\"><table><thead><tr>{heads}</tr></thead><tbody>",
        count(of.requests),
        seconds(of.seconds),
        stack(|phase| phase.share),
        of.slowest_said(),
        seconds(of.slowest_seconds),
        stack(|phase| phase.slowest_share)
    );
    for phase in &of.phases {
        let _ = write!(
            out,
            "<tr><td><i class=\"key\" style=\"background:var(--{})\"></i>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            phase.name,
            phase.name,
            seconds(phase.seconds),
            percent(phase.share),
            percent(phase.slowest_share)
        );
    }
    out.push_str("</tbody></table></div></section>");
    out
}

fn slowest(slowest: &[Slow]) -> String {
    let mut out = String::new();
    for (by, title) in [(By::FirstToken, "Longest to the first token"), (By::PerToken, "Slowest for each token")] {
        let mut of = slowest.iter().filter(|slow| slow.by == by).peekable();
        if of.peek().is_some() {
            let all: String = of.map(slow).collect();
            let _ = write!(out, "<section><h2>{title}</h2>{all}</section>");
        }
    }
    out
}

fn slow(slow: &Slow) -> String {
    let tokens = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), count);
    let id = slow.request_id.as_deref().map(|id| format!(" <code>{}</code>", escape(id))).unwrap_or_default();
    let model = slow.model.as_deref().map(|model| format!(" · {}", escape(model))).unwrap_or_default();
    let mut out = format!(
        "<div class=\"slow\"><p><b>first token {}</b>, a token {}, in all {} · {} → {} tokens · {}{model}</p><p class=\"why\">{}</p>\
         <p class=\"soft\">trace <code>{}</code>{id}</p><div class=\"fall\">",
        maybe(slow.ttft),
        maybe(slow.per_token),
        maybe(slow.e2e),
        tokens(slow.prompt_tokens),
        tokens(slow.output_tokens),
        slow.outcome,
        escape(&slow.why.said),
        escape(&slow.trace_id)
    );
    let ends = slow.phases.iter().map(|phase| phase.start + phase.seconds);
    let whole = ends.chain(slow.e2e).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    for phase in &slow.phases {
        let bar = svg::bar(color(phase.name), phase.start / whole, phase.seconds / whole);
        let _ = write!(out, "<span>{}</span>{bar}<b>{}</b>", phase.name, seconds(phase.seconds));
    }
    out.push_str("</div></div>");
    out
}

/// The colour of a span's phase.
fn color(name: &str) -> &'static str {
    match name {
        span::PARSE => "parse",
        span::TOKENIZE => "tokenize",
        span::QUEUE => "queue",
        span::PREFILL => "prefill",
        span::DECODE => "decode",
        span::DETOKENIZE => "detokenize",
        _ => "bar",
    }
}

fn steps(of: &StepsSaid) -> String {
    let mut said = vec![
        format!("{} steps of {}", count(of.count), of.engines_said()),
        format!("{} tokens of prompts, {} of answers", count(of.prefill_tokens), count(of.decode_tokens)),
    ];
    said.extend(of.kv_cache_usage_max.map(|usage| format!("KV cache at most {}", percent(usage))));
    said.extend(of.running_max.map(|running| format!("at most {} running", count(running))));
    said.extend(of.waiting_max.map(|waiting| format!("at most {} waiting", count(waiting))));
    let heads = heads(&["", "count", "total", "p50", "p95", "p99", "max"]);
    let mut out = format!(
        "<section><h2>Engine steps</h2><p>{}</p><div class=\"wide\"><table><thead><tr>{heads}</tr></thead><tbody>",
        said.join(" · ")
    );
    let row = |what: &str, of: &Durations| {
        let times: String =
            [of.seconds, of.p50, of.p95, of.p99, of.max].map(|time| format!("<td>{}</td>", seconds(time))).concat();
        format!("<tr><th>{what}</th><td>{}</td>{times}</tr>", count(of.count))
    };
    of.rows().for_each(|(what, of)| out.push_str(&row(&what, of)));
    out.push_str("</tbody></table></div>");
    out.push_str(&of.cuda.as_ref().map(cuda).unwrap_or_default());
    out.push_str("</section>");
    out
}

fn cuda(of: &CudaSaid) -> String {
    let mut said = vec![
        format!(
            "{} kernels and {} graphs launched in {} steps",
            count(of.launches),
            count(of.graph_launches),
            count(of.steps)
        ),
        format!("gaps between launches {} ({} of the steps' time)", seconds(of.gap_seconds), percent(of.gap_share())),
        format!("{} in {} waits of all threads", seconds(of.wait_seconds), count(of.waits)),
    ];
    said.extend(of.modes.iter().map(|(mode, n)| format!("{} steps {}", count(*n), escape(mode))));
    if of.fell_back > 0 {
        said.push(format!("{} steps ran without the graph that such batches had", count(of.fell_back)));
    }
    if of.unnamed_launches > 0 {
        said.push(format!("{} launches of kernels that are too many to be told apart", count(of.unnamed_launches)));
    }
    let mut out = format!("<h3>CUDA</h3><ul><li>{}</li></ul>", said.join("</li><li>"));
    if !of.top_kernels.is_empty() {
        out.push_str("<div class=\"wide\"><table><thead><tr><th>kernel</th><th>launches</th></tr></thead><tbody>");
        for (kernel, n) in &of.top_kernels {
            let _ = write!(out, "<tr><td class=\"name\">{}</td><td>{}</td></tr>", escape(kernel), count(*n));
        }
        out.push_str("</tbody></table></div>");
    }
    out
}

fn missing(report: &Report) -> String {
    let mut all: Vec<String> =
        report.incomplete.iter().map(|of| format!("{} requests: {}", count(of.count), of.what)).collect();
    if report.requests.left_out > 0 {
        all.push(format!("{} requests are in no distribution and no sum: too many", count(report.requests.left_out)));
    }
    all.extend(report.losses.iter().map(|loss| escape(&loss.said)));
    if all.is_empty() {
        all.push("nothing that is known of".to_owned());
    }
    format!("<section><h2>What is missing</h2><ul><li>{}</li></ul></section>", all.join("</li><li>"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escape("<b a='\"&\">"), "&lt;b a=&#39;&quot;&amp;&quot;&gt;");
    }
}
