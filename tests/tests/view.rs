//! What is open now, as a live display reads it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use inferspan::core::view::Stage;
use inferspan_demo_engine::wire::LENGTH;
use inferspan_tests::story::{Story, connection, json, post};

/// Id, stage and tokens of what is open.
fn open(story: &Story) -> Vec<(Option<String>, Stage, u64)> {
    story.view().open().map(|open| (open.id, open.stage, open.output_tokens)).collect()
}

#[test]
fn a_request_is_seen_at_each_stage_and_is_gone_when_it_is_over() {
    // request ─ ADD ─ first output ─ last output ─ response
    let mut story = Story::default();
    let (end, id) = (connection(1), "cmpl-a-0-0123abcd");
    story.open(end);
    assert_eq!(open(&story), []);
    story.request(end, &post("/v1/completions", Some("a"), r#"{"prompt":"a","max_tokens":3}"#));
    let named = || Some("cmpl-a".to_owned());
    assert_eq!(open(&story), [(named(), Stage::FrontEnd, 0)]);
    story.add(id, 5, 3);
    assert_eq!(open(&story), [(named(), Stage::Waiting, 0)]);
    story.outputs(&[(id, 1, None, true)]);
    assert_eq!(open(&story), [(named(), Stage::Producing, 1)]);
    let row = story.view().open().next().unwrap();
    assert_eq!(
        (row.route, row.prompt_tokens, row.engine, row.lost),
        (Some("/v1/completions"), Some(5), Some(0), false)
    );
    assert!(row.since < story.view().now());
    story.outputs(&[(id, 2, Some(LENGTH), false)]);
    assert_eq!(open(&story), [(named(), Stage::Finishing, 3)]);
    story.respond(end, &json(200, r#"{"id":"cmpl-a","choices":[{"finish_reason":"length"}]}"#));
    assert_eq!(open(&story), []);
}

#[test]
fn looking_changes_nothing() {
    let tell = |looks: bool| {
        let mut story = Story::default();
        let end = connection(1);
        story.open(end);
        story.request(end, &post("/v1/completions", None, r#"{"prompt":"a"}"#));
        for n in 0..3 {
            story.add(&format!("cmpl-b-{n}-0123abc{n}"), 5, 2);
            if looks {
                assert_eq!(story.view().open().count(), 2 + n, "what belongs to no HTTP request is shown too");
            }
        }
        story.made()
    };
    assert_eq!(tell(true), tell(false));
}
