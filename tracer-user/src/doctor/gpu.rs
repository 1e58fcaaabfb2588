//! The check of the machine's GPUs: what the driver says, and whether it says that something is wrong.

use super::Check;
use crate::gpu::{self, Gpu, Gpus, NoGpus};

const NAME: &str = "gpus";

pub(super) fn check() -> Check {
    judge(&gpu::read())
}

/// Nothing needs a GPU or NVML, so without them all is well.
fn judge(read: &Result<Gpus, NoGpus>) -> Check {
    let gpus = match read {
        Ok(gpus) => gpus,
        Err(why @ NoGpus::NotInstalled) => return Check::ok(NAME, format!("{why}: no facts and metrics of GPUs")),
        Err(why) => {
            let detail = format!("{why}: no facts and metrics of GPUs");
            return Check::warn(NAME, detail, "`nvidia-smi` asks the same library; look at what it says");
        }
    };
    let driver = gpus.driver.as_deref().unwrap_or("of unknown version");
    let all: Vec<String> = gpus.all.iter().map(describe).collect();
    let detail = format!("driver {driver}: {}", if all.is_empty() { "no GPU".to_owned() } else { all.join("; ") });
    let troubles: Vec<String> = gpus.all.iter().flat_map(troubles).collect();
    if troubles.is_empty() {
        return Check::ok(NAME, detail);
    }
    let fix = "look at cooling, power supply and the kernel's log (Xid); `nvidia-smi -q` has the rest";
    Check::warn(NAME, format!("{}; {detail}", troubles.join("; ")), fix)
}

fn describe(gpu: &Gpu) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let memory = match (gpu.memory_used_bytes, gpu.memory_total_bytes) {
        (Some(used), Some(total)) => format!(", {:.1} of {:.1} GiB in use", gib(used), gib(total)),
        _ => String::new(),
    };
    let processes = gpu.processes.as_ref().filter(|processes| !processes.is_empty());
    let processes = processes.map(|processes| {
        let processes: Vec<String> = processes.iter().map(ToString::to_string).collect();
        format!(", by {}", processes.join(", "))
    });
    let name = gpu.name.as_deref().unwrap_or("of unknown name");
    let uuid = gpu.uuid.as_ref().map(|uuid| format!(" ({uuid})")).unwrap_or_default();
    let busy = gpu.busy_percent.map(|percent| format!(", {percent} % busy")).unwrap_or_default();
    let clocks = [("SM", gpu.sm_clock_mhz), ("memory", gpu.memory_clock_mhz)];
    let clocks = clocks.into_iter().filter_map(|(of, mhz)| Some(format!(", {of} at {} MHz", mhz?)));
    let clocks: String = clocks.collect();
    format!("{} {name}{uuid}{memory}{}{busy}{clocks}", gpu.index, processes.unwrap_or_default())
}

fn troubles(gpu: &Gpu) -> Vec<String> {
    let mut troubles = Vec::new();
    if let Some(count) = gpu.ecc_uncorrected.filter(|&count| count > 0) {
        troubles.push(format!("GPU {} had {count} uncorrected memory errors since the driver was loaded", gpu.index));
    }
    let errors: Vec<String> = gpu.xids.iter().flatten().map(|(number, count)| format!("{number} ×{count}")).collect();
    if !errors.is_empty() {
        troubles.push(format!("GPU {} had critical errors (Xid {})", gpu.index, errors.join(", ")));
    }
    let slow = gpu.throttled.iter().flatten().filter(|reason| reason.is_trouble());
    let slow: Vec<&str> = slow.map(|reason| reason.name()).collect();
    if !slow.is_empty() {
        troubles.push(format!("GPU {} is slowed down now ({})", gpu.index, slow.join(", ")));
    }
    troubles
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use crate::gpu::Throttle;

    fn one(gpu: Gpu) -> Check {
        judge(&Ok(Gpus { driver: Some("570.1".into()), all: vec![gpu] }))
    }

    #[test]
    fn a_machine_without_gpus_is_well() {
        assert_eq!(judge(&Err(NoGpus::NotInstalled)).status, Status::Ok);
        assert_eq!(judge(&Ok(Gpus::default())).detail, "driver of unknown version: no GPU");
        assert_eq!(judge(&Err(NoGpus::Silent)).status, Status::Warn);
    }

    #[test]
    fn errors_of_memory_and_heat_are_warnings_and_a_power_cap_is_not() {
        let gpu = |reason, ecc_uncorrected| Gpu { throttled: Some(vec![reason]), ecc_uncorrected, ..Gpu::default() };
        assert_eq!(one(gpu(Throttle::PowerCap, Some(0))).status, Status::Ok);
        assert!(one(gpu(Throttle::HardwareThermal, None)).detail.starts_with("GPU 0 is slowed down now (hardware_the"));
        assert!(one(gpu(Throttle::PowerCap, Some(2))).detail.starts_with("GPU 0 had 2 uncorrected"));
        let fallen = one(Gpu { xids: Some([(31, 1), (79, 2)].into()), ..Gpu::default() });
        assert!(fallen.detail.starts_with("GPU 0 had critical errors (Xid 31 ×1, 79 ×2)"), "{}", fallen.detail);
        assert_eq!(one(Gpu { xids: Some([].into()), ..Gpu::default() }).status, Status::Ok);
    }
}
