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
        for from in self.waiting.remove(&id).unwrap_or_default() {
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
