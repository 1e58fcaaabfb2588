//! One run of several servers: inputs are all there is to it, and the servers do not see each other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use inferspan::core::Config;
use inferspan::input::{Event, Fact, Input, LossStage, Lost, What};
use inferspan::output::{AccessRecord, Output};
use inferspan::run::pipeline::Pipeline;
use inferspan_demo_engine::wire::LENGTH;
use inferspan_tests::pipeline::Made;
use inferspan_tests::story::{API, ENGINE, Story, connection, json, post};

/// Added to the process ids of the second server.
const SHIFT: u32 = 1_000;
const LAG: u64 = 20_000_000;

/// Three requests on three connections, one after the other.
fn story() -> Story {
    let mut story = Story::default();
    for n in 1..=3 {
        let (end, id) = (connection(n), format!("cmpl-r{n}"));
        story.open(end);
        story.request(end, &post("/v1/completions", None, r#"{"prompt":"a"}"#));
        story.add(&format!("{id}-0-0123abc{n}"), 5, 2);
        story.outputs(&[(&format!("{id}-0-0123abc{n}"), 2, Some(LENGTH), true)]);
        let usage = r#""usage":{"prompt_tokens":5,"total_tokens":7,"completion_tokens":2}"#;
        let body = format!(r#"{{"id":"{id}","choices":[{{"finish_reason":"length"}}],{usage}}}"#);
        story.respond(end, &json(200, &body));
    }
    story.quiet(8_000);
    story
}

/// What each server's story tells, merged by time, as a source of both would say it: facts by the server, all else by process.
fn merged(stories: &[Vec<Input>]) -> Vec<(Option<usize>, Input)> {
    let mut all: Vec<(u64, Option<usize>, Input)> = Vec::new();
    for (server, inputs) in stories.iter().enumerate() {
        let mut now = 0;
        for input in inputs {
            match input {
                Input::Event(event) => now = event.at,
                Input::Tick(at) => now = *at,
                _ => {}
            }
            let of = matches!(input, Input::Fact(_)).then_some(server);
            all.push((now, of, input.clone()));
        }
    }
    all.sort_by_key(|(at, ..)| *at);
    all.into_iter().map(|(_, of, input)| (of, input)).collect()
}

fn outputs(servers: usize, inputs: &[(Option<usize>, Input)]) -> Vec<Output> {
    let mut pipeline = Pipeline::new(servers, LAG, &Config::default());
    for (server, input) in inputs {
        pipeline.push(*server, input.clone());
    }
    while pipeline.finish_part() {}
    std::mem::take(pipeline.outputs())
}

fn of<'a>(made: &'a Made, server: &'a str) -> impl Iterator<Item = &'a AccessRecord> {
    made.access.iter().filter(move |record| &*record.server == server)
}

#[test]
fn each_server_of_a_run_gives_what_it_gives_alone() {
    let one = story();
    let stories = [one.told_elsewhere(0), one.told_elsewhere(SHIFT)];
    let both = Made::of(outputs(2, &merged(&stories)), 0);
    for (index, story) in stories.iter().enumerate() {
        let alone = Made::of(outputs(1, &merged(std::slice::from_ref(story))), 0);
        let name = format!("vllm-{}", API + SHIFT * index as u32);
        assert_eq!(alone.access.len(), 3);
        assert_eq!(of(&both, &name).collect::<Vec<_>>(), of(&alone, &name).collect::<Vec<_>>());
        let traces = |made: &Made| -> Vec<_> {
            made.traces.iter().filter(|trace| trace.server.instance() == name).cloned().collect()
        };
        assert_eq!(traces(&both), traces(&alone));
    }
    assert_eq!(both.access.len(), 6);
}

#[test]
fn the_same_inputs_give_the_same_outputs() {
    let one = story();
    let inputs = merged(&[one.told_elsewhere(0), one.told_elsewhere(SHIFT)]);
    assert_eq!(outputs(2, &inputs), outputs(2, &inputs));
}

#[test]
fn a_recording_of_two_servers_gives_the_same_outputs() {
    let one = story();
    let inputs = merged(&[one.told_elsewhere(0), one.told_elsewhere(SHIFT)]);
    let mut live = Pipeline::new(2, LAG, &Config::default());
    live.record(false);
    for (server, input) in inputs {
        live.push(server, input);
    }
    while live.finish_part() {}
    let mut again = Pipeline::new(2, 0, &Config::default());
    for entry in live.take_entries() {
        again.replay(entry, false);
    }
    let told = |pipeline: &mut Pipeline| std::mem::take(pipeline.outputs());
    let (live, replayed) = (told(&mut live), told(&mut again));
    assert_eq!(Made::of(live.clone(), 0).access.len(), 6);
    assert_eq!(live, replayed, "in the same order, too");
    assert_eq!(again.unanswered(), 0);
}

#[test]
fn a_child_belongs_to_its_parents_server_and_a_strangers_events_are_counted() {
    // two servers · the engine of the second forks 77 · 77 closes · 99 closes, whom nobody knows
    let mut pipeline = Pipeline::new(2, LAG, &Config::default());
    let mut event = |at: u64, process: u32, what: What| {
        pipeline.push(None, Input::Event(Event { at, process, thread: process, what }));
    };
    event(1, ENGINE, What::Exited);
    pipeline.push(Some(1), Input::Fact(Fact::Process { tgid: ENGINE, role: inferspan::input::Role::Engine }));
    let mut event = |at: u64, process: u32, what: What| {
        pipeline.push(None, Input::Event(Event { at, process, thread: process, what }));
    };
    event(2, ENGINE, What::Forked { child: 77 });
    event(3, 77, What::Executed);
    event(4, 99, What::Executed);
    let lost: Vec<Lost> = pipeline
        .outputs()
        .iter()
        .filter_map(|output| match output {
            Output::Lost(lost) => Some(*lost),
            _ => None,
        })
        .collect();
    let stranger = |at| Lost { at, count: 1, stage: LossStage::Unclassified };
    assert_eq!(lost, [stranger(1), stranger(4)], "before it was known, and 99");
}
