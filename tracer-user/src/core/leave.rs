//! What leaves when a request is over: metrics, an access record, a tree of spans.
//!
//! Enters: a request that is over, or cut off. Leaves: outputs. Invariant: what the metrics take of a request is what its record says.

use std::sync::Arc;

use super::scene::Scene;
use super::steps::Steps;
use crate::model::beams::Tally;
use crate::model::exchange::Exchange;
use crate::model::generation::Generation;
use crate::model::record::{Finished, resolve};
use crate::model::tree::{self, Place};
use crate::output::{FinishReason, Metric, Outcome, Output};

/// Says all of a request that is over; `cut_off`: the stream ended before it did. Gives the spans over `max_spans`.
pub(super) fn leave(
    exchange: Option<&Exchange>,
    generations: &[Generation],
    cut_off: bool,
    max_spans: usize,
    steps: &mut Steps,
    scene: &mut Scene<'_>,
) -> u64 {
    let process = exchange.map_or_else(|| generations.first().map_or(0, |g| g.process), |e| e.process);
    let finished = Finished {
        exchange,
        generations: generations.iter().collect(),
        tokenizer_probed: scene.about.is_tokenizer_probed(process),
        cut_off,
        http_only: !scene.engine.has_messages(),
    };
    let place = tree::place(&finished, scene.about.run);
    for key in exchange.iter().flat_map(|exchange| &exchange.generations) {
        steps.request_left(*key, (place.trace_id, place.root_id), scene.now);
    }
    for generation in generations {
        let own = Tally::of(generation, resolve(generation, exchange));
        let beams = generation.beams.iter().flat_map(|beams| beams.tallies.iter().copied());
        for tally in std::iter::once(own).chain(beams) {
            tallied(tally, generation.finish().is_some(), place, scene);
        }
    }
    if finished.http_only {
        by_http_alone(&finished, place, scene);
    }
    if let Some(record) = finished.access(place.trace_id, place.root_id, &scene.about.clock, &scene.about.server) {
        if let Some(exchange) = exchange {
            let metric = request(&finished, exchange, record.outcome, place, scene);
            scene.say(metric);
            if finished.usage_differs() {
                let labels = scene.about.labels(generations.first().map_or(0, |g| g.engine));
                scene.say(Metric::UsageDiffers { labels });
            }
        }
        scene.out.push(Output::Access(Box::new(record)));
    }
    let about = &*scene.about;
    let (trace, dropped) = tree::build(&finished, place, about.run, &about.clock, &about.server, max_spans);
    scene.out.push(Output::Trace(trace));
    dropped
}

/// A long beam search's metrics leave before it is over, so that what is held stays small.
pub(super) fn tallies(scene: &mut Scene<'_>) {
    for (lead, tallies) in scene.requests.generations.take_tallies() {
        let Some(generation) = scene.requests.generations.get(lead) else { continue };
        let by_engine = generation.finish().is_some();
        let exchange = generation.exchange.and_then(|key| scene.requests.exchanges.get(key));
        let generations = vec![generation];
        let place = tree::place(
            &Finished { exchange, generations, tokenizer_probed: false, cut_off: false, http_only: false },
            scene.about.run,
        );
        for tally in tallies {
            tallied(tally, by_engine, place, scene);
        }
    }
}

/// What the response says stands for an engine's own counts.
fn by_http_alone(finished: &Finished<'_>, place: Place, scene: &mut Scene<'_>) {
    let labels = scene.about.labels(0);
    if let Some(tokens) = finished.prompt_tokens() {
        let cached = finished.cached_tokens().unwrap_or(0);
        scene.say(Metric::Prompt { labels: labels.clone(), tokens, cached });
    }
    if let Some(tokens) = finished.output_tokens() {
        scene.say(Metric::Tokens { labels, tokens, inter_token: None });
    }
    for reason in finished.finish_reasons() {
        tallied(Tally { reason: Some(reason), ..Tally::default() }, true, place, scene);
    }
}

/// The engine's own histograms take a generation when its front end finishes it: not when it was cancelled. Its time to first
/// token they take when that comes, whatever happens then.
fn tallied(tally: Tally, by_engine: bool, place: Place, scene: &mut Scene<'_>) {
    let labels = scene.about.labels(tally.engine);
    if let Some(ttft_engine) = tally.ttft {
        let (trace_id, span_id) = (place.trace_id, place.root_id);
        scene.say(Metric::FirstToken { labels: labels.clone(), ttft_engine, trace_id, span_id });
    }
    let Some(finish_reason) = tally.reason else { return };
    let counted = finish_reason != FinishReason::Abort || by_engine;
    let only = |seconds: Option<f64>| seconds.filter(|_| counted);
    scene.say(Metric::Generation {
        labels,
        finish_reason,
        trace_id: place.trace_id,
        span_id: place.root_id,
        queue: only(tally.queue),
        prefill: only(tally.prefill),
        decode: only(tally.decode),
        inference: only(tally.inference),
    });
}

fn request(finished: &Finished<'_>, exchange: &Exchange, outcome: Outcome, place: Place, scene: &Scene<'_>) -> Metric {
    let failed = !matches!(outcome, Outcome::Stop | Outcome::Length);
    let error_type = failed.then(|| finished.error_type());
    Metric::Request {
        labels: scene.about.labels(finished.generations.first().map_or(0, |g| g.engine)),
        outcome,
        operation: exchange.operation.name,
        provider: Arc::from(scene.about.server.engine.as_str()),
        error_type,
        trace_id: place.trace_id,
        span_id: place.root_id,
        seconds: finished.seconds(),
        time_per_output_token: finished.time_per_output_token(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::exchanges::tests::completion;
    use crate::core::scene::tests::Ground;
    use crate::engine::ENGINES;
    use crate::model::exchange::{Ending, Usage};
    use crate::model::generation::{Phase, StepRef, TokensAt};

    const ID: &str = "cmpl-a-0-0123abcd";

    /// Queued 1 s, scheduled 2 s, tokens at 3 and 5 s; over, as `phase` says.
    fn generation(phase: Phase) -> Generation {
        let second = 1_000_000_000;
        let tokens = |at: u64| TokensAt { at, received: at, tokens: 1, step: StepRef { engine: 0, stamp: 0 } };
        let mut generation = Generation::new(ID.into(), ENGINES[0].identify(ID, None), second);
        (generation.added, generation.arrival) = (Some(second), Some(second));
        (generation.queued, generation.scheduled) = (Some(second), Some(2 * second));
        (generation.first, generation.last) = (Some(tokens(3 * second)), Some(tokens(5 * second)));
        (generation.prompt_tokens, generation.output_tokens, generation.phase) = (Some(5), 2, phase);
        generation
    }

    fn said(exchange: Option<&Exchange>, generations: &[Generation], ground: &mut Ground) -> u64 {
        let (work, mut scene) = ground.all();
        leave(exchange, generations, false, 2000, work.steps, &mut scene)
    }

    /// Finish reasons and queue times that the metrics took.
    fn taken(ground: &Ground) -> Vec<(FinishReason, Option<f64>)> {
        let of = |metric: &Metric| match metric {
            Metric::Generation { finish_reason, queue, .. } => Some((*finish_reason, *queue)),
            _ => None,
        };
        ground.metrics().into_iter().filter_map(of).collect()
    }

    #[test]
    fn the_histograms_take_what_the_engine_finished_and_not_what_was_cancelled() {
        // over by length · cancelled · cancelled, and its response ended as usual: a stop string
        let mut ground = Ground::default();
        let over = Phase::Over { at: 6, reason: FinishReason::Length };
        said(None, &[generation(over)], &mut ground);
        said(None, &[generation(Phase::Aborted { at: 6 })], &mut ground);
        let mut exchange = completion(1);
        (exchange.status, exchange.ending) = (Some(200), Some((7, Ending::Complete)));
        said(Some(&exchange), &[generation(Phase::Aborted { at: 6 })], &mut ground);
        let expected =
            [(FinishReason::Length, Some(1.0)), (FinishReason::Abort, None), (FinishReason::Stop, Some(1.0))];
        assert_eq!(taken(&ground), expected);
        let first_tokens = ground.metrics().into_iter().filter(|metric| matches!(metric, Metric::FirstToken { .. }));
        assert_eq!(first_tokens.count(), 3, "the time to first token is taken when that comes");
    }

    #[test]
    fn a_response_that_counts_otherwise_is_told_of() {
        // the response says 2 tokens, as was counted · it says 3
        for (said_tokens, differs) in [(2, 0), (3, 1)] {
            let mut ground = Ground::default();
            let mut exchange = completion(1);
            (exchange.status, exchange.ending) = (Some(200), Some((7, Ending::Complete)));
            exchange.usage = Usage { completion_tokens: Some(said_tokens), ..Usage::default() };
            let over = Phase::Over { at: 6, reason: FinishReason::Length };
            said(Some(&exchange), &[generation(over)], &mut ground);
            let differing = ground.metrics().into_iter().filter(|m| matches!(m, Metric::UsageDiffers { .. }));
            assert_eq!(differing.count(), differs);
        }
    }

    #[test]
    fn where_the_http_side_stands_alone_its_usage_is_counted() {
        let mut ground = Ground { engine: ENGINES[1], ..Ground::default() };
        let mut exchange = completion(1);
        (exchange.status, exchange.ending, exchange.by_length) = (Some(200), Some((7, Ending::Complete)), true);
        exchange.usage = Usage { prompt_tokens: Some(9), cached_tokens: Some(4), completion_tokens: Some(3) };
        said(Some(&exchange), &[], &mut ground);
        let counted = ground.metrics().into_iter().fold((0, 0, 0), |(prompt, cached, tokens), metric| match metric {
            Metric::Prompt { tokens: of, cached: from_cache, .. } => (prompt + of, cached + from_cache, tokens),
            Metric::Tokens { tokens: of, .. } => (prompt, cached, tokens + of),
            _ => (prompt, cached, tokens),
        });
        assert_eq!((counted, taken(&ground)), ((9, 4, 3), vec![(FinishReason::Length, None)]));
    }

    #[test]
    fn a_long_beam_search_tells_its_metrics_before_it_is_over() {
        // 1,024 beams are over: their tallies leave, once
        let id = "cmpl-a-0011223344556677-beam-0-0123abcd";
        let mut ground = Ground::default();
        let mut lead = Generation::new(id.into(), ENGINES[0].identify(id, None), 1);
        let tally = Tally { reason: Some(FinishReason::Length), ..Tally::default() };
        lead.beams.get_or_insert_default().tallies = vec![tally; 1_024];
        ground.requests.insert(lead);
        for _ in 0..2 {
            tallies(&mut ground.scene());
        }
        assert_eq!(taken(&ground).len(), 1_024);
    }

    #[test]
    fn spans_over_the_cap_are_counted() {
        let mut ground = Ground::default();
        let (work, mut scene) = ground.all();
        let over = Phase::Over { at: 6, reason: FinishReason::Length };
        let dropped = leave(None, &[generation(over)], false, 1, work.steps, &mut scene);
        assert!(dropped > 0);
        let spans = ground.out.iter().filter_map(|output| match output {
            Output::Trace(trace) => Some(trace.spans.len()),
            _ => None,
        });
        assert_eq!(spans.collect::<Vec<_>>(), [1]);
    }
}
