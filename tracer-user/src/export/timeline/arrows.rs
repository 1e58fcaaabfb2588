//! Arrows from requests to the engine steps that served them.
//!
//! A request is drawn when it is over, most of its steps long before, the last one maybe after it. So the newest steps are kept, and the
//! newest links that found none. What is found in neither gets no arrow; the slice says its step all the same.

use std::collections::{HashMap, VecDeque};

use super::mark::{Mark, Pen, TrackId};
use super::tracks::arrow;

/// Steps that are kept: at 100 a second, five minutes. 2 MB.
const STEPS: usize = 32_768;
/// Links that wait for their step.
const LINKS: usize = 8192;

#[derive(Debug, Clone, Copy)]
struct Step {
    track: TrackId,
    start: u64,
    end: u64,
}

/// The start of a request's slice.
type From = (TrackId, u64);

#[derive(Debug, Default)]
pub(super) struct Arrows {
    steps: HashMap<u64, Step>,
    order: VecDeque<u64>,
    /// By the step, oldest first in `waiting_order`.
    waiting: HashMap<u64, Vec<From>>,
    waiting_order: VecDeque<u64>,
    links: usize,
}

impl Arrows {
    /// A step is drawn.
    pub(super) fn step(&mut self, id: u64, track: TrackId, start: u64, end: u64, pen: &mut Pen<'_>) {
        let step = Step { track, start, end };
        if self.steps.len() >= STEPS
            && let Some(oldest) = self.order.pop_front()
        {
            self.steps.remove(&oldest);
        }
        if self.steps.insert(id, step).is_none() {
            self.order.push_back(id);
        }
        let Some(found) = self.waiting.remove(&id) else { return };
        self.waiting_order.retain(|&waiting| waiting != id);
        for from in found {
            self.links -= 1;
            draw(id, from, step, pen);
        }
    }

    /// A slice that is drawn, which the step `id` served.
    pub(super) fn link(&mut self, id: u64, from: From, pen: &mut Pen<'_>) {
        if let Some(&step) = self.steps.get(&id) {
            draw(id, from, step, pen);
            return;
        }
        while self.links >= LINKS {
            let Some(oldest) = self.waiting_order.pop_front() else { break };
            self.links -= self.waiting.remove(&oldest).map_or(0, |links| links.len());
        }
        let links = self.waiting.entry(id).or_default();
        if links.is_empty() {
            self.waiting_order.push_back(id);
        }
        links.push(from);
        self.links += 1;
    }
}

fn draw(id: u64, from: From, step: Step, pen: &mut Pen<'_>) {
    // Each end has to lie in its slice, and time only goes on.
    let at = from.1.max(step.start);
    if at < step.end {
        pen.mark(&Mark::Arrow { id: arrow(&[id, from.0, from.1]), from, to: (step.track, at) });
    }
}

#[cfg(test)]
mod tests {
    use super::super::mark::Format;
    use super::*;

    /// Counts arrows.
    struct Counter(usize);

    impl Format for Counter {
        fn begin(&mut self, _at: u64, _out: &mut Vec<u8>) {}
        fn mark(&mut self, mark: &Mark<'_>, _out: &mut Vec<u8>) {
            self.0 += usize::from(matches!(mark, Mark::Arrow { .. }));
        }
        fn end(&mut self, _out: &mut Vec<u8>) {}
    }

    #[test]
    fn the_newest_steps_and_links_are_kept_and_no_more() {
        let (mut counter, mut out, mut arrows) = (Counter(0), Vec::new(), Arrows::default());
        let pen = &mut Pen { format: &mut counter, out: &mut out };
        let (steps, links) = (STEPS as u64, LINKS as u64);
        for id in 0..steps + 10 {
            arrows.step(id, 1, 100, 200, pen);
        }
        assert_eq!((arrows.steps.len(), arrows.order.len()), (STEPS, STEPS));
        arrows.link(0, (2, 150), pen);
        arrows.link(steps, (2, 150), pen);
        for id in 1 << 40..(1 << 40) + links + 10 {
            arrows.link(id, (2, 150), pen);
        }
        assert_eq!((arrows.links, arrows.waiting.len(), arrows.waiting_order.len()), (LINKS, LINKS, LINKS));
        arrows.step(1 << 40, 1, 100, 200, pen);
        arrows.step((1 << 40) + links, 1, 100, 200, pen);
        assert_eq!(arrows.links, LINKS - 1);
        assert_eq!(counter.0, 2, "of a step that is kept, and of a link that still waited");
    }
}
