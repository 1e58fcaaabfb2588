//! What the rooms of the core share while one input is taken.
//!
//! Each room owns what only it changes; this is the rest: what is known of the server, the connections and the requests that are open, and
//! where outputs go. The core lends it for one input, so no room keeps hold of another's state.

use super::about::About;
use super::connections::Connections;
use super::requests::Requests;
use crate::engine::Engine;
use crate::input::{End, EventNanos, LossStage};
use crate::output::{Metric, Output};

pub(super) struct Scene<'a> {
    /// The newest event's time.
    pub now: EventNanos,
    /// Whose messages and ids these are.
    pub engine: &'static dyn Engine,
    pub about: &'a mut About,
    pub connections: &'a mut Connections,
    pub requests: &'a mut Requests,
    pub out: &'a mut Vec<Output>,
}

impl Scene<'_> {
    pub(super) fn say(&mut self, metric: Metric) {
        self.out.push(Output::Metric(metric));
    }

    /// Follows a connection; one that finds no room is counted.
    pub(super) fn connect(&mut self, end: End, process: u32, from_start: bool) {
        if !self.connections.open(end, process, from_start) {
            self.count_loss(LossStage::Connections, 1);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::core::cuda::Cuda;
    use crate::core::steps::{Steps, Work};
    use crate::engine::ENGINES;

    /// What a scene is lent from, where a room is tested alone.
    #[derive(Debug)]
    pub(in crate::core) struct Ground {
        pub now: EventNanos,
        pub engine: &'static dyn Engine,
        pub about: About,
        pub connections: Connections,
        pub requests: Requests,
        pub steps: Steps,
        pub cuda: Cuda,
        pub out: Vec<Output>,
    }

    impl Default for Ground {
        fn default() -> Self {
            Self {
                now: 0,
                engine: ENGINES[0],
                about: About::default(),
                connections: Connections::default(),
                requests: Requests::default(),
                steps: Steps::default(),
                cuda: Cuda::default(),
                out: Vec::new(),
            }
        }
    }

    impl Ground {
        pub(in crate::core) fn scene(&mut self) -> Scene<'_> {
            self.all().1
        }

        pub(in crate::core) fn all(&mut self) -> (Work<'_>, Scene<'_>) {
            let scene = Scene {
                now: self.now,
                engine: self.engine,
                about: &mut self.about,
                connections: &mut self.connections,
                requests: &mut self.requests,
                out: &mut self.out,
            };
            (Work { steps: &mut self.steps, cuda: &mut self.cuda }, scene)
        }

        /// So much was lost, by stage, in the order in which it was told.
        pub(in crate::core) fn losses(&self) -> Vec<(LossStage, u64)> {
            let lost = |output: &Output| match output {
                Output::Lost(lost) => Some((lost.stage, lost.count)),
                _ => None,
            };
            self.out.iter().filter_map(lost).collect()
        }

        pub(in crate::core) fn metrics(&self) -> Vec<&Metric> {
            let metrics = self.out.iter().filter_map(|output| match output {
                Output::Metric(metric) => Some(metric),
                _ => None,
            });
            metrics.collect()
        }
    }

    #[test]
    fn a_connection_that_finds_no_room_is_counted() {
        // 114,688 connections are followed · one more is not
        let mut ground = Ground { now: 7, ..Ground::default() };
        for end in 0..crate::core::connections::MAX_CONNECTIONS as u64 {
            ground.scene().connect(End(end), 1, true);
        }
        assert_eq!(ground.losses(), []);
        ground.scene().connect(End(u64::MAX), 1, true);
        assert_eq!(ground.losses(), [(LossStage::Connections, 1)]);
    }
}
