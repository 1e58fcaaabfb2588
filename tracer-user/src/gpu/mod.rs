//! What the NVIDIA driver says about the GPUs of this machine.
//!
//! Enters: NVML (`libnvidia-ml.so.1`), which is part of the driver, loaded when it is asked. Leaves: a [`Gpu`] each, as it was at one
//! moment. Invariants: what a GPU or a driver does not say is `None`; nothing is changed or reset; nobody waits longer than
//! [`PATIENCE`], though a driver in trouble may not answer for minutes. Refused: GPUs over [`GPUS_MAX`], processes over
//! [`PROCESSES_MAX`].

mod log;
mod nvml;
mod watch;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

pub use crate::input::gpu::{Gpu, Gpus, PciAddress, Throttle, XID_UNKNOWN, Xids};
pub use watch::Watch;

/// The largest machines have 16.
pub const GPUS_MAX: u32 = 64;
/// Kinds of critical errors of one GPU; NVIDIA has some 150.
pub const XIDS_MAX: usize = 64;
/// Of one GPU.
pub const PROCESSES_MAX: usize = 4096;
/// How long a user waits. Without its persistence daemon the driver takes a second or two a GPU to start.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Why nothing is known of GPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoGpus {
    #[error("libnvidia-ml.so.1 is not there")]
    NotInstalled,
    #[error("NVML: {0}")]
    Refused(String),
    #[error("NVML does not answer within {} s", PATIENCE.as_secs())]
    Silent,
}

/// What the driver says, and what the log has said before.
fn once(open: &nvml::Open) -> Gpus {
    let mut errors = open.errors();
    let mut gpus = open.read(&mut errors);
    let logged = log::xids();
    for gpu in &mut gpus.all {
        let Some(of) = gpu.pci.and_then(|pci| logged.get(&pci)) else { continue };
        let told = gpu.xids.get_or_insert_default();
        // What came just now stands in both.
        for (number, count) in of {
            let told = told.entry(*number).or_default();
            *told = (*told).max(*count);
        }
    }
    gpus
}

/// Asks once.
pub fn read() -> Result<Gpus, NoGpus> {
    let (say, hear) = mpsc::channel();
    // It cannot be ended; a driver that answers later answers nobody.
    let asked = thread::Builder::new().name("gpus".to_owned()).spawn(move || {
        let _ = say.send(nvml::open().map(|open| once(&open)));
    });
    asked.map_err(|error| NoGpus::Refused(error.to_string()))?;
    hear.recv_timeout(PATIENCE).unwrap_or(Err(NoGpus::Silent))
}
