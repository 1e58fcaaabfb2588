//! NVML, asked question by question.
//!
//! Enters: the library, by its name, as the loader finds it. Leaves: [`Gpus`]. Invariant: a question that fails costs its own answer only;
//! a GPU that cannot be opened is left out.

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;

use super::{GPUS_MAX, Gpu, Gpus, NoGpus, PROCESSES_MAX, Throttle};
use crate::sanitise::printable;

/// NVML, loaded and initialised; it is let go with this.
#[derive(Debug)]
pub(super) struct Open(Nvml);

pub(super) fn open() -> Result<Open, NoGpus> {
    Nvml::init().map(Open).map_err(|error| match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => NoGpus::NotInstalled,
        other => NoGpus::Refused(other.to_string()),
    })
}

impl Open {
    /// Every GPU, now.
    pub(super) fn read(&self) -> Gpus {
        let count = self.0.device_count().unwrap_or(0).min(GPUS_MAX);
        let all = (0..count).filter_map(|index| self.gpu(index)).collect();
        Gpus { driver: self.0.sys_driver_version().ok().map(|version| printable(version.as_bytes())), all }
    }

    fn gpu(&self, index: u32) -> Option<Gpu> {
        let device = self.0.device_by_index(index).ok()?;
        let text = |text: Result<String, NvmlError>| text.ok().map(|text| printable(text.as_bytes()));
        let memory = device.memory_info().ok();
        let busy = device.utilization_rates().ok();
        let ecc = |kind| device.total_ecc_errors(kind, EccCounter::Volatile).ok();
        Some(Gpu {
            index,
            uuid: text(device.uuid()),
            name: text(device.name()),
            minor: device.minor_number().ok(),
            memory_used_bytes: memory.as_ref().map(|memory| memory.used),
            memory_total_bytes: memory.as_ref().map(|memory| memory.total),
            busy_percent: busy.as_ref().map(|busy| busy.gpu),
            memory_busy_percent: busy.as_ref().map(|busy| busy.memory),
            sm_clock_mhz: device.clock_info(Clock::SM).ok(),
            memory_clock_mhz: device.clock_info(Clock::Memory).ok(),
            temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
            power_milliwatts: device.power_usage().ok(),
            throttled: device.current_throttle_reasons().ok().map(throttles),
            ecc_corrected: ecc(MemoryError::Corrected),
            ecc_uncorrected: ecc(MemoryError::Uncorrected),
            processes: device
                .running_compute_processes()
                .ok()
                .map(|processes| processes.iter().take(PROCESSES_MAX).map(|process| process.pid).collect()),
        })
    }
}

fn throttles(reasons: ThrottleReasons) -> Vec<Throttle> {
    let bit = |throttle| match throttle {
        Throttle::PowerCap => ThrottleReasons::SW_POWER_CAP,
        Throttle::Thermal => ThrottleReasons::SW_THERMAL_SLOWDOWN,
        Throttle::HardwareThermal => ThrottleReasons::HW_THERMAL_SLOWDOWN,
        Throttle::PowerBrake => ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN,
        Throttle::Hardware => ThrottleReasons::HW_SLOWDOWN,
        Throttle::SyncBoost => ThrottleReasons::SYNC_BOOST,
    };
    Throttle::ALL.into_iter().filter(|throttle| reasons.contains(bit(*throttle))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idleness_and_settings_throttle_nothing() {
        let harmless = ThrottleReasons::GPU_IDLE | ThrottleReasons::APPLICATIONS_CLOCKS_SETTING;
        assert_eq!(throttles(harmless), []);
        let hot = harmless | ThrottleReasons::HW_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN;
        assert_eq!(throttles(hot), [Throttle::HardwareThermal, Throttle::Hardware]);
    }
}
