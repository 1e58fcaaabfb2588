//! Causes that only CUDA shows.

use super::*;
use crate::output::cuda::StepCuda;

/// [`normal`], with what each step did.
fn with(of: impl Fn(usize) -> StepCuda) -> Scene {
    let mut scene = normal();
    for (at, step) in scene.around.steps.iter_mut().enumerate() {
        Arc::get_mut(step).unwrap().cuda = Some(Box::new(of(at)));
    }
    scene
}

/// A healthy step: one graph, one wait that takes most of it.
fn healthy() -> StepCuda {
    StepCuda {
        graph_launches: 1,
        launches: 3,
        waits: 1,
        wait_ns: 8 * MS,
        gap_ns: MS,
        processes: 1,
        ..StepCuda::default()
    }
}

#[test]
fn steps_that_run_their_graph_and_wait_for_it_are_well() {
    let scene = with(|_| healthy());
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 990)]);
    assert!(!scene.verdict().unseen.iter().any(|what| what.contains("CUDA")));
}

#[test]
fn many_launches_with_nothing_enqueued_between_them_are_launch_bound() {
    let bound = || StepCuda { launches: 400, graph_launches: 0, gap_ns: 7 * MS, wait_ns: MS, ..healthy() };
    let scene = with(|_| bound());
    assert_eq!(scene.blamed(), [(Kind::LaunchBound, 693 + 7)]);
    assert_eq!(
        scene.evidence(),
        "nothing was enqueued or waited for in 70 % of its steps' time, with 400 launches a step"
    );
    let scene = with(|_| StepCuda { launches: 4, ..bound() });
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 990)], "four launches bind nobody");
}

#[test]
fn a_step_that_waits_many_times_is_sync_bound() {
    let scene = with(|_| StepCuda { waits: 40, ..healthy() });
    assert_eq!(scene.blamed(), [(Kind::SyncBound, 800)]);
    assert_eq!(scene.evidence(), "the CPU waited for the GPU 40 times a step, 80 % of its steps' time");
}

#[test]
fn steps_without_the_graph_of_their_like_cost_what_they_took_more() {
    // 50 steps of 10 ms with their graph, 25 of 20 ms without
    let mut scene = Scene::new(1_000);
    scene.decode(0, 1_000, 76);
    scene.steps(0, 500, 10, 4);
    scene.steps(500, 1_000, 20, 4);
    for (at, step) in scene.around.steps.iter_mut().enumerate() {
        let fell_back = at >= 50;
        Arc::get_mut(step).unwrap().cuda = Some(Box::new(StepCuda { fell_back, ..healthy() }));
    }
    assert_eq!(scene.blamed(), [(Kind::EagerFallback, 250)]);
    assert_eq!(
        scene.evidence(),
        "25 of its 75 steps ran without the graph that such batches run with: 20 ms instead of 10 ms"
    );
}

#[test]
fn one_rank_that_comes_last_is_a_straggler_and_ranks_that_take_turns_are_not() {
    let late = |rank| StepCuda { straggler: Some(rank), collective_skew_ns: Some(4 * MS), processes: 2, ..healthy() };
    let scene = with(|_| late(1));
    assert_eq!(scene.blamed(), [(Kind::Straggler, 400)]);
    assert_eq!(scene.evidence(), "rank 1 came last to the collectives in 100 of 100 steps, 4.0 ms behind the first");
    let scene = with(|at| late(at as u32 % 2));
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 990)]);
}
