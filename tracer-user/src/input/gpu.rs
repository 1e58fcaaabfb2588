//! What the driver of the machine's GPUs says at one moment. What a GPU or a driver does not say is `None`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How often a GPU had each critical error (Xid), by NVIDIA's number; [`XID_UNKNOWN`] is one that the driver does not number.
pub type Xids = BTreeMap<u64, u64>;
pub const XID_UNKNOWN: u64 = 999;

/// A place on the PCI bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PciAddress {
    pub domain: u32,
    pub bus: u32,
    pub device: u32,
}

/// What the driver says at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpus {
    /// `570.86.10`
    pub driver: Option<String>,
    pub all: Vec<Gpu>,
}

/// One GPU. Of a text only what can be printed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpu {
    /// NVML's number, by the place on the PCI bus.
    pub index: u32,
    pub uuid: Option<String>,
    pub name: Option<String>,
    /// Of its device file: `/dev/nvidia<minor>`.
    pub minor: Option<u32>,
    pub memory_used_bytes: Option<u64>,
    pub memory_total_bytes: Option<u64>,
    /// Part of the last moments (1/6 to 1 s) in which any kernel ran.
    pub busy_percent: Option<u32>,
    /// The same of reads and writes of its memory.
    pub memory_busy_percent: Option<u32>,
    pub sm_clock_mhz: Option<u32>,
    pub memory_clock_mhz: Option<u32>,
    pub temperature_celsius: Option<u32>,
    pub power_milliwatts: Option<u32>,
    /// What holds its clocks down now.
    pub throttled: Option<Vec<Throttle>>,
    /// Since the driver was loaded; of GPUs with ECC switched on.
    pub ecc_corrected: Option<u64>,
    pub ecc_uncorrected: Option<u64>,
    /// Critical errors: since the watch began; of one look, as far back as the kernel's log goes. `None`: neither says it.
    pub xids: Option<Xids>,
    /// Where it stands.
    pub pci: Option<PciAddress>,
    /// Those that compute on it, as the namespace of this process numbers them.
    pub processes: Option<Vec<u32>>,
}

/// What can hold clocks down (`nvmlClocksThrottleReason*`). Idleness and a user's own setting are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Throttle {
    PowerCap,
    Thermal,
    HardwareThermal,
    PowerBrake,
    /// Any of the hardware's, or one of its own.
    Hardware,
    SyncBoost,
}

impl Throttle {
    pub const ALL: [Self; 6] =
        [Self::PowerCap, Self::Thermal, Self::HardwareThermal, Self::PowerBrake, Self::Hardware, Self::SyncBoost];

    pub fn name(self) -> &'static str {
        match self {
            Self::PowerCap => "power_cap",
            Self::Thermal => "thermal",
            Self::HardwareThermal => "hardware_thermal",
            Self::PowerBrake => "power_brake",
            Self::Hardware => "hardware",
            Self::SyncBoost => "sync_boost",
        }
    }

    /// Something is wrong with cooling or supply; the rest happens to healthy machines.
    pub fn is_trouble(self) -> bool {
        matches!(self, Self::HardwareThermal | Self::PowerBrake | Self::Hardware)
    }
}

impl Gpu {
    /// Whether any of these processes uses it: by the driver's list; where it gives none, by its device files (`nvidia0`) that they hold.
    pub fn is_used_by(&self, processes: &[u32], devices: &[String]) -> bool {
        match (&self.processes, self.minor) {
            (Some(own), _) => own.iter().any(|process| processes.contains(process)),
            (None, Some(minor)) => devices.contains(&format!("nvidia{minor}")),
            (None, None) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_its_processes_and_the_device_file_counts_only_without_a_list() {
        let held = ["nvidia0".to_owned(), "nvidiactl".to_owned()];
        let gpu = |processes, minor| Gpu { minor, processes, ..Gpu::default() };
        assert!(gpu(Some(vec![7]), None).is_used_by(&[6, 7], &[]));
        assert!(!gpu(Some(vec![8]), Some(0)).is_used_by(&[6, 7], &held), "a CUDA process opens all of them");
        assert!(gpu(None, Some(0)).is_used_by(&[7], &held));
        assert!(!gpu(None, Some(1)).is_used_by(&[7], &held));
        assert!(!gpu(None, None).is_used_by(&[7], &held));
    }
}
