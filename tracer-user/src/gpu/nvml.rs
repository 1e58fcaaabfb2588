//! NVML, asked question by question.
//!
//! Enters: the library, by its name, as the loader finds it. Leaves: [`Gpus`]. Invariant: a question that fails costs its own answer only;
//! a GPU that cannot be opened is left out.

use std::collections::BTreeMap;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;

use super::{GPUS_MAX, Gpu, Gpus, NoGpus, PROCESSES_MAX, PciAddress, Throttle, XID_UNKNOWN, XIDS_MAX, Xids};
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

/// Critical errors that are taken at a time; the rest waits for the next.
const ERRORS_AT_A_TIME: usize = 1024;

/// Critical errors of GPUs since this was made, by the GPU's number. A GPU that tells of none (a virtual one) is not in it.
#[derive(Debug)]
pub(super) struct Errors<'a>(BTreeMap<u32, (EventSet<'a>, Xids)>);

impl Errors<'_> {
    /// Takes what a GPU has told since the last call: all that it told. Of several between two calls the driver gives the last one's number.
    fn of(&mut self, index: u32) -> Option<Xids> {
        let (events, counts) = self.0.get_mut(&index)?;
        for _ in 0..ERRORS_AT_A_TIME {
            // It waits for nothing.
            let Ok(event) = events.wait(0) else { break };
            let number = match event.event_data {
                Some(XidError::Value(number)) => number,
                Some(XidError::Unknown) => XID_UNKNOWN,
                None => continue,
            };
            if counts.len() < XIDS_MAX || counts.contains_key(&number) {
                *counts.entry(number).or_default() += 1;
            }
        }
        Some(counts.clone())
    }
}

impl Open {
    /// Listens for critical errors from now on.
    pub(super) fn errors(&self) -> Errors<'_> {
        let listen = |index: u32| {
            let device = self.0.device_by_index(index).ok()?;
            let events = self.0.create_event_set().ok()?;
            let events = device.register_events(EventTypes::CRITICAL_XID_ERROR, events).ok()?;
            Some((index, (events, Xids::new())))
        };
        Errors((0..self.count()).filter_map(listen).collect())
    }

    fn count(&self) -> u32 {
        self.0.device_count().unwrap_or(0).min(GPUS_MAX)
    }

    /// Every GPU, now.
    pub(super) fn read(&self, errors: &mut Errors<'_>) -> Gpus {
        let with_errors = |gpu: Gpu| Gpu { xids: errors.of(gpu.index), ..gpu };
        let all = (0..self.count()).filter_map(|index| self.gpu(index)).map(with_errors).collect();
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
            xids: None,
            pci: device.pci_info().ok().map(|pci| PciAddress { domain: pci.domain, bus: pci.bus, device: pci.device }),
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
