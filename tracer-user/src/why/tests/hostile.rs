//! Trees as nobody builds them.

use proptest::prelude::*;

use super::*;

fn name() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&span::ALL[..])
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::Int),
        any::<f64>().prop_map(Value::Float),
        proptest::sample::select(&["admission", "preemption", "inferred", "engine_error", "\u{1b}[2J"][..])
            .prop_map(|text| Value::Str(text.into())),
    ]
}

fn time() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..2_000 * MS, 1 => any::<u64>()]
}

fn spans() -> impl Strategy<Value = Vec<Span>> {
    let attributes = proptest::collection::vec((proptest::sample::select(&attribute::ALL[..]), value()), 0..6);
    let one = (name(), time(), time(), any::<u8>(), any::<u8>(), attributes);
    proptest::collection::vec(one, 0..40).prop_map(|all| {
        let made = all.into_iter().map(|(name, start_ns, end_ns, id, parent, attributes)| {
            let mut of = bare(id % 16, Some(parent % 16), name, 0, 0);
            (of.start_ns, of.end_ns) = (start_ns, end_ns);
            of.attributes.extend(attributes);
            of.links.push(SpanLink::to(TraceId([id; 16]), SpanId([parent; 8])));
            of
        });
        made.collect()
    })
}

fn steps() -> impl Strategy<Value = Vec<Arc<EngineStep>>> {
    let one = (time(), time(), any::<u64>(), any::<u64>(), any::<bool>());
    proptest::collection::vec(one, 0..60).prop_map(|all| {
        let made = all.into_iter().map(|(start_ns, end_ns, requests, prefill_tokens, has_cuda)| {
            let mut of = step(0, 0, requests);
            (of.start_ns, of.end_ns, of.prefill_tokens) = (start_ns, end_ns, prefill_tokens / 3);
            of.stats = stats(requests, prefill_tokens, f64::NAN);
            if has_cuda {
                let of_all = crate::output::cuda::StepCuda {
                    launches: requests,
                    graph_launches: requests,
                    waits: prefill_tokens,
                    wait_ns: prefill_tokens,
                    gap_ns: requests,
                    fell_back: requests % 2 == 0,
                    straggler: Some(requests as u32 % 3),
                    collective_skew_ns: Some(requests),
                    ..Default::default()
                };
                of.cuda = Some(Box::new(of_all));
            }
            Arc::new(of)
        });
        made.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_comes_nothing_breaks_and_a_time_is_blamed_once(
        root in (time(), time()),
        spans in spans(),
        (steps, before, after) in (steps(), steps(), steps()),
        prefills in proptest::collection::vec((time(), time(), any::<Option<u64>>()), 0..20),
    ) {
        let mut scene = Scene::new(1);
        (scene.root().start_ns, scene.root().end_ns) = root;
        scene.trace.merit.outcome = Some(Outcome::Error);
        scene.trace.spans.extend(spans);
        let prefills = prefills.into_iter().map(|(start_ns, end_ns, tokens)| {
            Prefill { trace: TraceId([9; 16]), engine: 0, start_ns, end_ns, tokens }
        });
        let tokenizing = vec![root, (root.1, root.0)];
        scene.around = Around { steps, before, after, prefills: prefills.collect(), tokenizing };
        let verdict = explain(&scene.trace, &scene.around);
        let shares: f64 = verdict.causes.iter().map(|cause| cause.share).sum();
        prop_assert!(shares <= 1.000_001, "{:?}", verdict);
        for cause in &verdict.causes {
            prop_assert!(cause.seconds.is_finite() && cause.seconds >= 0.0);
            prop_assert!(!cause.evidence.chars().any(crate::sanitise::is_unsafe), "{:?}", cause.evidence);
        }
        let _ = text::paragraph(&scene.trace, &verdict);
    }
}

#[test]
fn a_tree_without_a_root_is_not_judged() {
    let mut scene = normal();
    scene.trace.spans.clear();
    assert_eq!(scene.verdict(), Verdict::default());
    assert_eq!(text::paragraph(&scene.trace, &Verdict::default()), "");
}
