//! Causes on the engine's side.

use super::*;

/// 0 queued 500 ├ prefill ┤ 510 ├ 49 tokens of 10 ms ┤ 1000
fn queued() -> Scene {
    let mut scene = Scene::new(1_000);
    scene.wait(0, 500, "admission");
    scene.prefill(500, 510, 20);
    scene.steps(0, 500, 10, 4);
    scene.step(500, 510, 4).prefill_tokens = 20;
    scene.decode(510, 1_000, 50);
    scene.steps(510, 1_000, 10, 4);
    scene
}

fn with_stats(scene: &mut Scene, running: u64, waiting: u64, kv: f64) {
    for step in &mut scene.around.steps {
        Arc::get_mut(step).unwrap().stats = stats(running, waiting, kv);
    }
}

#[test]
fn a_wait_in_the_queue_is_queued_behind_those_that_waited() {
    let mut scene = queued();
    with_stats(&mut scene, 4, 15, 0.98);
    assert_eq!(scene.blamed(), [(Kind::Queued, 500)]);
    assert_eq!(scene.evidence(), "queued behind 14 requests, KV cache 98 % full");
}

#[test]
fn the_engines_own_words_at_the_queue_come_before_the_steps() {
    let mut scene = queued();
    with_stats(&mut scene, 4, 15, 0.2);
    let wait = scene.trace.spans.iter_mut().find(|of| of.name == span::QUEUE).unwrap();
    wait.attributes.push((attribute::QUEUE_WAITING, Value::Int(1)));
    wait.attributes.push((attribute::QUEUE_RUNNING, Value::Int(4)));
    wait.attributes.push((attribute::QUEUE_KV_USAGE, Value::Float(0.3)));
    scene.around.before = before(8, stats(4, 15, 0.2));
    assert_eq!(scene.evidence(), "queued behind 1 request, batch full (4 ran), KV cache 30 % used");
    Arc::get_mut(&mut scene.around.steps[60]).unwrap().stats = stats(16, 0, 0.2);
    assert_eq!(scene.evidence(), "queued behind 1 request, for a place in the batch (4 ran), KV cache 30 % used");
}

/// So many steps before a request came, that said this.
fn before(count: u64, stats: Option<SchedulerStats>) -> Vec<Arc<EngineStep>> {
    let one = |n: u64| {
        let mut step = step(n, n + 1, 4);
        step.stats = stats;
        Arc::new(step)
    };
    (0..count).map(one).collect()
}

#[test]
fn a_batch_is_full_where_as_many_ran_before_and_never_more() {
    let mut scene = queued();
    with_stats(&mut scene, 4, 15, 0.2);
    for (known, is_full) in [
        (before(0, None), false),
        (before(7, stats(4, 15, 0.2)), false),
        (before(8, None), false),
        (before(8, stats(4, 15, 0.2)), true),
        (before(8, stats(16, 0, 0.2)), false),
    ] {
        scene.around.before = known;
        let reason = if is_full { "batch full" } else { "for a place in the batch" };
        let said = format!("queued behind 14 requests, {reason} (4 ran), KV cache 20 % used");
        assert_eq!(scene.evidence(), said, "{:?}", scene.around.before.first());
    }
    // One that ran alone before it came, with as many tokens as now, tells of no limit.
    let mut alone = before(8, stats(1, 0, 0.2));
    for step in &mut alone {
        Arc::get_mut(step).unwrap().requests = 1;
    }
    scene.around.before = alone;
    assert!(scene.evidence().contains("for a place in the batch (4 ran)"), "{}", scene.evidence());
}

#[test]
fn what_it_queued_for_is_not_said_where_nothing_tells() {
    assert_eq!(
        queued().evidence(),
        "queued, behind how many is not known, for KV cache or a place in the batch: the scheduler does not say"
    );
    // Fewer ran than at other times, and the cache was neither full nor free.
    let mut scene = queued();
    with_stats(&mut scene, 4, 3, 0.7);
    Arc::get_mut(&mut scene.around.steps[60]).unwrap().stats = stats(16, 0, 0.7);
    assert!(
        scene.evidence().contains("whether for KV cache (70 % used) or a place in the batch (4 ran) cannot be told")
    );
}

#[test]
fn a_wait_with_nobody_before_it_and_room_is_for_its_grammar_or_for_nothing_that_is_seen() {
    // 0 queued 500, nobody else waits and 1 runs, of which 4 did before
    let mut scene = queued();
    with_stats(&mut scene, 1, 1, 0.02);
    for step in &mut scene.around.steps {
        Arc::get_mut(step).unwrap().requests = 1;
    }
    scene.around.before = before(8, stats(4, 0, 0.2));
    assert_eq!(scene.blamed()[0], (Kind::Queued, 500));
    let room = "although there was room (1 ran, 4 did before, KV cache 2 % used)";
    assert_eq!(scene.evidence(), format!("queued with nobody before it, {room}"));
    scene.trace.spans[0].attributes.push((attribute::STRUCTURED_OUTPUT, Value::Bool(true)));
    assert_eq!(scene.blamed()[0], (Kind::Grammar, 500));
    assert_eq!(scene.evidence(), format!("not scheduled {room}: the grammar of its output is compiled first"));
    // As many run as did before: it may have waited for one of them to end.
    scene.around.before = before(8, stats(1, 0, 0.2));
    for step in &mut scene.around.before {
        Arc::get_mut(step).unwrap().requests = 1;
    }
    assert_eq!(scene.blamed()[0], (Kind::Queued, 500));
    // The cache was full.
    scene.around.before = before(8, stats(4, 0, 0.2));
    with_stats(&mut scene, 1, 1, 0.97);
    assert_eq!(scene.evidence(), "queued with nobody before it, KV cache 97 % full");
}

#[test]
fn the_wait_for_the_step_that_runs_is_no_queue() {
    // 0 waits 20 ├ prefill ┤ 30 ├ 7 tokens of 10 ms ┤ 100
    let mut scene = Scene::new(100);
    scene.wait(0, 20, "admission");
    scene.prefill(20, 30, 20);
    scene.decode(30, 100, 8);
    scene.steps(0, 100, 10, 4);
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 70)]);
}

#[test]
fn a_wait_behind_one_long_prompt_is_that_prompts() {
    // 0 queued 500; another's prompt of 8,000 tokens from 10 to 495
    let mut scene = queued();
    with_stats(&mut scene, 2, 1, 0.3);
    let other =
        Prefill { trace: TraceId([9; 16]), engine: 0, start_ns: 10 * MS, end_ns: 495 * MS, tokens: Some(8_000) };
    scene.around.prefills.push(other);
    // The steps beside it are no measure of a usual one; those behind it are.
    assert_eq!(scene.blamed(), [(Kind::PrefillOfOthers, 500)]);
    assert_eq!(scene.evidence(), "waited while the prompt of another request was computed (8,000 tokens)");
    with_stats(&mut scene, 2, 1, 0.95);
    assert_eq!(scene.blamed(), [(Kind::Queued, 500)], "there was no room for it anyway");
}

/// 0 ├ prefill ┤ 10 ├ tokens ┤ 300 preempted, 700 scheduled, 760 next token ├ tokens ┤ 1000
fn preempted() -> Scene {
    let mut scene = Scene::new(1_000);
    scene.prefill(0, 10, 20);
    scene.decode(10, 1_000, 55);
    scene.decode_step(30, 295, 760);
    scene.wait(300, 700, "preemption");
    scene.root().attributes.push((attribute::PREEMPTIONS, Value::Int(1)));
    scene.steps(10, 700, 10, 4);
    scene.step(700, 760, 4);
    scene.steps(760, 1_000, 10, 4);
    scene
}

#[test]
fn a_preemption_costs_the_wait_and_what_is_computed_again() {
    let mut scene = preempted();
    with_stats(&mut scene, 4, 1, 0.99);
    assert_eq!(scene.blamed(), [(Kind::Preempted, 460)]);
    assert_eq!(scene.evidence(), "preempted 1 time, KV cache 99 % full: waited 400 ms and computed again for 60 ms");
}

#[test]
fn a_preemption_of_a_moment_is_not_blamed() {
    let mut scene = normal();
    scene.decode_step(30, 300, 310);
    scene.wait(302, 305, "preemption");
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 990)]);
}

#[test]
fn a_long_prompt_is_its_own_with_what_the_cache_gave_and_its_chunks() {
    // 0 ├ prefill of 4,096 tokens, in 4 chunks ┤ 400 ├ 10 tokens of 10 ms ┤ 500
    let mut scene = Scene::new(500);
    let prefill = scene.prefill(0, 400, 4_096);
    prefill.attributes.push((attribute::CACHED, Value::Int(1_024)));
    for at in [100, 200, 300] {
        prefill.events.push(SpanEvent { name: event::PREFILL_CHUNK, at_ns: at * MS, attributes: Vec::new() });
    }
    scene.steps(0, 300, 100, 4);
    scene.step(300, 400, 4).prefill_tokens = 3_072;
    scene.decode(400, 500, 11);
    scene.steps(400, 500, 10, 4);
    assert_eq!(scene.blamed(), [(Kind::LongPrefill, 400)]);
    assert_eq!(scene.evidence(), "prompt of 4,096 tokens, 25 % from the prefix cache, in 4 chunks, 130 ms for 1,000");
}

#[test]
fn a_short_prompt_is_not_blamed_however_long_its_step() {
    // 0 ├ prefill of 20 tokens ┤ 30 ├ 10 tokens of 10 ms ┤ 130
    let mut scene = Scene::new(130);
    scene.prefill(0, 60, 20);
    scene.step(0, 60, 4).prefill_tokens = 20;
    scene.decode(60, 130, 8);
    scene.steps(60, 130, 7, 4);
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 70)]);
}

#[test]
fn a_prompt_that_is_computed_beside_longer_ones_is_late_by_them() {
    // one step from 0 to 400: 300 tokens of its own, 2,700 of others
    let mut scene = Scene::new(500);
    scene.prefill(0, 400, 300);
    scene.step(0, 400, 4).prefill_tokens = 3_000;
    scene.decode(400, 500, 11);
    scene.steps(400, 500, 10, 4);
    // 390 ms over a usual step, nine tenths of it.
    assert_eq!(scene.blamed(), [(Kind::PrefillOfOthers, 351)]);
    assert_eq!(scene.evidence(), "its prompt (300 tokens) was computed beside 2,700 of other requests'");
}

#[test]
fn others_prompts_inside_its_steps_cost_what_those_took_over_usual_ones() {
    // tokens of 10 ms but step 20, from 200 to 610, with a prompt of 8,192
    let mut scene = Scene::new(1_100);
    scene.prefill(0, 10, 20);
    scene.decode(10, 1_100, 70);
    scene.steps(10, 200, 10, 4);
    scene.step(200, 610, 5).prefill_tokens = 8_192;
    scene.steps(610, 1_100, 10, 4);
    scene.decode_step(20, 200, 610);
    assert_eq!(scene.blamed(), [(Kind::PrefillOfOthers, 400)]);
    assert_eq!(
        scene.evidence(),
        "prompts of other requests (8,192 tokens) were computed in 1 of its 69 steps, the most in step 20: 410 ms instead of 10 ms"
    );
    assert!(scene.verdict().causes[0].inferred);
}

#[test]
fn a_prompt_in_chunks_is_in_every_step_that_it_overlaps() {
    // 200..600: four steps of 100 ms; only the last says how many tokens
    let mut scene = Scene::new(1_100);
    scene.prefill(0, 10, 20);
    scene.decode(10, 1_100, 74);
    scene.steps(10, 200, 10, 4);
    scene.steps(200, 500, 100, 4);
    scene.step(500, 600, 5).prefill_tokens = 8_192;
    scene.steps(600, 1_100, 10, 4);
    let prefill = |end_ms: u64| Prefill {
        trace: TraceId([9; 16]),
        engine: 0,
        start_ns: 195 * MS,
        end_ns: end_ms * MS,
        tokens: Some(8_192),
    };
    scene.around.prefills.push(prefill(600));
    assert_eq!(scene.blamed(), [(Kind::PrefillOfOthers, 360)]);
    // On another engine it is no matter; the fourth step still says that a prompt ended there, whosever it was.
    scene.around.prefills[0].engine = 1;
    assert_eq!(scene.blamed(), [(Kind::PrefillOfOthers, 360)]);
    assert!(scene.evidence().starts_with("prompts of other requests (8,192 tokens) were computed in 4 of its"));
    // A prompt that is known to have been computed in that step alone explains it, and not the others.
    let known = prefill(600);
    scene.around.prefills = vec![Prefill { start_ns: 502 * MS, ..known }];
    assert_eq!(scene.blamed(), [(Kind::SlowSteps, 270)], "the fourth alone is too little");
    // Nor does a short one that nobody tells of.
    scene.around.prefills.clear();
    let fourth = scene.around.steps.iter_mut().find(|step| step.prefill_tokens > 0).unwrap();
    Arc::get_mut(fourth).unwrap().prefill_tokens = 300;
    assert_eq!(scene.blamed(), [(Kind::SlowSteps, 270)], "one step is enough for it");
}

#[test]
fn a_step_is_not_slow_for_a_prompt_of_a_few_tokens() {
    // tokens of 10 ms, but three of 100 ms from 500 on, all through which another's prompt is computed
    let mut scene = Scene::new(1_000);
    scene.prefill(0, 10, 20);
    scene.decode(10, 1_000, 73);
    scene.steps(10, 500, 10, 4);
    scene.steps(500, 800, 100, 4);
    scene.steps(800, 1_000, 10, 4);
    for (tokens, kind) in
        [(Some(63), Kind::SlowSteps), (Some(64), Kind::PrefillOfOthers), (None, Kind::PrefillOfOthers)]
    {
        let (start_ns, end_ns) = (500 * MS, 800 * MS);
        scene.around.prefills = vec![Prefill { trace: TraceId([9; 16]), engine: 0, start_ns, end_ns, tokens }];
        assert_eq!(scene.blamed(), [(kind, 270)], "{tokens:?}");
    }
}

/// tokens of 10 ms until 700, then three of 100 ms; on goes the engine with `after` steps of 100 ms that have no prompt's end
fn slow_until_its_end(running: u64, after: u64) -> Scene {
    let mut scene = Scene::new(1_000);
    scene.prefill(0, 10, 20);
    scene.decode(10, 1_000, 73);
    scene.steps(10, 700, 10, 4);
    scene.steps(700, 1_000, 100, 4);
    with_stats(&mut scene, running, 0, 0.2);
    let next = (0..after).map(|n| Arc::new(step(1_000 + n * 100, 1_100 + n * 100, 4)));
    scene.around.after = next.collect();
    scene
}

const UNTOLD: &str = "whose prompt was computed in its slow steps, if one was: it has not ended";

#[test]
fn slow_steps_in_which_somebodys_prompt_may_be_computed_still_are_not_blamed() {
    for after in [0, 5] {
        let scene = slow_until_its_end(5, after);
        assert_eq!(scene.blamed(), [(Kind::ManyTokens, 990)], "one more ran than gave tokens");
        assert!(scene.verdict().unseen.iter().any(|what| what == UNTOLD), "{:?}", scene.verdict());
    }
    let scene = slow_until_its_end(4, 0);
    assert_eq!(scene.blamed(), [(Kind::SlowSteps, 270)], "all that ran gave tokens");
    assert!(!scene.verdict().unseen.iter().any(|what| what == UNTOLD));
    let mut scene = slow_until_its_end(5, 2);
    scene.around.after.push(Arc::new(step(1_200, 1_210, 4)));
    assert_eq!(scene.blamed(), [(Kind::SlowSteps, 270)], "they ended, and with them no prompt");
}

#[test]
fn a_prompt_that_ends_after_a_request_was_computed_in_its_last_steps() {
    let mut scene = slow_until_its_end(5, 2);
    let mut last = step(1_200, 1_300, 5);
    last.prefill_tokens = 8_192;
    scene.around.after.push(Arc::new(last));
    assert_eq!(scene.blamed(), [(Kind::PrefillOfOthers, 270)]);
    assert!(scene.verdict().causes[0].inferred);
    assert!(!scene.verdict().unseen.iter().any(|what| what == UNTOLD));
}

#[test]
fn a_wait_behind_a_prompt_that_no_trace_tells_of_is_that_prompts() {
    // 0 queued 500: five steps of 100 ms, the last of which ends a prompt of 8,000 tokens
    let mut scene = queued();
    scene.around.steps.retain(|step| step.start_ns >= 500 * MS);
    scene.steps(0, 500, 100, 4);
    scene.around.steps.sort_by_key(|step| step.end_ns);
    with_stats(&mut scene, 2, 1, 0.3);
    Arc::get_mut(&mut scene.around.steps[4]).unwrap().prefill_tokens = 8_000;
    assert_eq!(scene.blamed(), [(Kind::PrefillOfOthers, 500)]);
    assert_eq!(scene.evidence(), "waited while the prompt of another request was computed (8,000 tokens)");
}

#[test]
fn a_prompt_that_is_known_counts_by_the_part_that_was_computed_beside() {
    // 0 ├ prefill of 300 ┤ 400; another of 8,000 from before, 1,600 of them until 400
    let mut scene = Scene::new(500);
    scene.prefill(0, 400, 300);
    scene.step(0, 400, 4).prefill_tokens = 8_300;
    scene.decode(400, 500, 11);
    scene.steps(400, 500, 10, 4);
    scene.root().start_ns = 0;
    let (start_ns, end_ns) = (0, 400 * MS);
    let other = Prefill { trace: TraceId([9; 16]), engine: 0, start_ns, end_ns, tokens: Some(1_600) };
    // Nobody tells of the other 6,400, and of no more.
    scene.around.prefills = vec![other];
    assert!(scene.evidence().ends_with("beside 8,000 of other requests'"), "{}", scene.evidence());
    // It began long before.
    scene
        .trace
        .spans
        .iter_mut()
        .for_each(|of| (of.start_ns, of.end_ns) = (of.start_ns + 1_600 * MS, of.end_ns + 1_600 * MS));
    for step in &mut scene.around.steps {
        let step = Arc::get_mut(step).unwrap();
        (step.start_ns, step.end_ns) = (step.start_ns + 1_600 * MS, step.end_ns + 1_600 * MS);
    }
    (scene.around.prefills[0].end_ns, scene.around.prefills[0].tokens) = (2_000 * MS, Some(8_000));
    assert!(scene.evidence().ends_with("beside 1,600 of other requests'"), "{}", scene.evidence());
}

#[test]
fn others_prompts_that_cost_nothing_are_not_blamed() {
    let mut scene = normal();
    for step in scene.around.steps.iter_mut().skip(20).step_by(5) {
        Arc::get_mut(step).unwrap().prefill_tokens = 64;
    }
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 990)]);
}

#[test]
fn without_the_engines_steps_its_own_are_looked_at() {
    // steps 1..=9 of 10 ms, then one of 300, beside a prompt of others
    let mut scene = Scene::new(400);
    scene.decode(10, 400, 11);
    (0..9).for_each(|k| scene.decode_step(k + 1, 10 + 10 * k as u64, 20 + 10 * k as u64));
    scene.decode_step(10, 100, 400);
    let of = Prefill { trace: TraceId([9; 16]), engine: 0, start_ns: 105 * MS, end_ns: 399 * MS, tokens: Some(500) };
    scene.around.prefills.push(of);
    assert_eq!(scene.blamed(), [(Kind::PrefillOfOthers, 290)]);
    assert!(scene.verdict().unseen.iter().any(|what| what.contains("steps meanwhile: they are not kept")));
    scene.around.prefills.clear();
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 390)], "there is no evidence of anything");
}

#[test]
fn one_slow_step_is_slow_and_one_that_is_a_little_slower_is_not() {
    let scene_with = |took_ms: u64| {
        let mut scene = Scene::new(1_000);
        scene.decode(10, 1_000, 100);
        scene.steps(10, 300, 10, 4);
        scene.step(300, 300 + took_ms, 4);
        scene.steps(300 + took_ms, 1_000, 10, 4);
        scene
    };
    assert_eq!(scene_with(210).blamed(), [(Kind::SlowSteps, 200)]);
    assert!(scene_with(210).evidence().ends_with("the longest 210 ms instead of 10 ms (batch of 4)"));
    assert_eq!(scene_with(25).blamed(), [(Kind::ManyTokens, 990)]);
    // Before it came every twentieth step was as slow: so it is there.
    let mut scene = scene_with(210);
    scene.around.before = (0..100).map(|n| Arc::new(step(0, if n % 20 == 0 { 210 } else { 10 }, 4))).collect();
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 990)]);
}

#[test]
fn a_stall_is_told_though_there_was_one_before_and_in_a_long_answer_where_it_is_long() {
    // 0 ├ tokens of 10 ms ┤ 300 one of 400 or 1,500 ms ├ tokens of 10 ms ┤
    let scene_with = |took_ms: u64, to: u64| {
        let mut scene = Scene::new(to);
        scene.decode(10, to, 100);
        scene.steps(10, 300, 10, 4);
        scene.step(300, 300 + took_ms, 4);
        scene.steps(300 + took_ms, to, 10, 4);
        scene
    };
    let before = |stalls: u64, took_ms: u64| {
        (0..100).map(|n| Arc::new(step(0, if n < stalls { took_ms } else { 10 }, 4))).collect::<Vec<_>>()
    };
    let mut scene = scene_with(400, 1_300);
    assert_eq!(scene_before(&mut scene, before(2, 500)), [(Kind::SlowSteps, 390)]);
    assert_eq!(scene_before(&mut scene, before(3, 500))[0].0, Kind::ManyTokens, "there it is usual");
    assert_eq!(scene_before(&mut scene, before(9, 150)), [(Kind::SlowSteps, 390)], "shorter ones are");
    assert_eq!(scene_before(&mut scene_with(400, 10_300), before(0, 0))[0].0, Kind::ManyTokens, "4 % of it");
    assert_eq!(scene_before(&mut scene_with(1_500, 20_300), before(0, 0)), [(Kind::SlowSteps, 1_490)], "7 % of it");
}

fn scene_before(scene: &mut Scene, before: Vec<Arc<EngineStep>>) -> Vec<(Kind, u64)> {
    scene.around.before = before;
    scene.blamed()
}

#[test]
fn an_engine_that_became_slow_is_told_by_what_was_usual_before_it_came() {
    let mut scene = normal();
    let before = |took_ms: u64, requests: u64| -> Vec<Arc<EngineStep>> {
        (0..20).map(|n| Arc::new(step(n * took_ms, (n + 1) * took_ms, requests))).collect()
    };
    // All that run give tokens: no prompt is computed.
    with_stats(&mut scene, 4, 0, 0.2);
    scene.around.before = before(4, 4);
    assert_eq!(scene.blamed(), [(Kind::SlowSteps, 600)]);
    assert_eq!(scene.evidence(), "its steps took 10 ms, such steps before it came 4.0 ms (batches of 4)");
    assert_eq!(scene_before(&mut scene, before(4, 64)), [(Kind::SlowSteps, 600)], "larger ones took less, even");
    // A smaller batch is no measure of it, and a little faster is not slow.
    scene.around.before = before(4, 1);
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 990)]);
    scene.around.before = before(8, 4);
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 990)]);
}
