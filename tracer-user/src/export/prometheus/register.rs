//! Registers families, and keeps hold of all of them for what concerns all.

use std::fmt::Debug;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::registry::{Registry, Unit};

use super::family::{Family, Join, LabelPairs};
use super::table::Kind;

/// A family whose series can get other labels.
pub(super) trait Rename: Debug + Send {
    /// Moves every series for which `renamed` has new labels.
    fn rename(&self, renamed: &dyn Fn(&LabelPairs) -> Option<LabelPairs>);
}

impl<M: Join + Clone + Debug + Send + Sync> Rename for Family<M> {
    fn rename(&self, renamed: &dyn Fn(&LabelPairs) -> Option<LabelPairs>) {
        Family::rename(self, renamed);
    }
}

pub(super) struct Register<'a> {
    registry: &'a mut Registry,
    all: Vec<Box<dyn Rename>>,
}

impl<'a> Register<'a> {
    pub(super) fn new(registry: &'a mut Registry) -> Self {
        Self { registry, all: Vec::new() }
    }

    /// A histogram's unit is seconds, and stands in its name.
    pub(super) fn family<M>(&mut self, name: &str, help: &str, kind: Kind, new: fn() -> M) -> Family<M>
    where
        M: Join + Clone + EncodeMetric + TypedMetric + Debug + Send + Sync + 'static,
    {
        let family = self.hold(new);
        match kind {
            Kind::Histogram => self.registry.register_with_unit(name, help, Unit::Seconds, family.clone()),
            Kind::Counter | Kind::Gauge => self.registry.register(name, help, family.clone()),
        }
        family
    }

    fn hold<M: Join + Clone + Debug + Send + Sync + 'static>(&mut self, new: fn() -> M) -> Family<M> {
        let family = Family::new(new);
        self.all.push(Box::new(family.clone()));
        family
    }

    /// Every family that was registered.
    pub(super) fn all(self) -> Vec<Box<dyn Rename>> {
        self.all
    }
}
