//! Container ids out of `/proc/PID/cgroup`.
//!
//! Pure. Recognised by the shape that each runtime gives its cgroup: 64 hexadecimal digits, alone or as
//! `<runtime>-<id>.scope` (docker, containerd, CRI-O, podman, Kubernetes with either driver), or the ECS task form.
//! The innermost one wins. The monitor of a container (`crio-conmon-…`) is not in it. Refused: hashes that are no ids.

/// Hexadecimal digits in a container id, all runtimes.
const ID_DIGITS: usize = 64;

/// The container that a process with this `/proc/PID/cgroup` runs in.
pub(super) fn container_id(cgroup: &str) -> Option<String> {
    // `hierarchy:controllers:path`; the unified hierarchy is the last line and every line agrees where there are several.
    cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(innermost)
}

fn innermost(path: &str) -> Option<String> {
    let segments: Vec<&str> = path.split('/').collect();
    segments
        .iter()
        .rposition(|segment| id_of(segment).is_some() || segment.contains("-conmon-"))
        .map_or_else(|| ecs(&segments), |at| id_of(segments[at]).map(str::to_owned))
}

fn id_of(segment: &str) -> Option<&str> {
    let segment = segment.strip_suffix(".scope").unwrap_or(segment);
    if segment.contains("-conmon-") {
        return None;
    }
    // `docker-<id>`, `cri-containerd-<id>`, `kubepods-pod….slice:cri-containerd:<id>`
    let id = segment.rsplit(['-', ':']).next()?;
    is_id(id).then_some(id)
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// `/ecs/<task>/<task>-<number>`: the id that the ECS agent gives a container.
fn ecs(segments: &[&str]) -> Option<String> {
    let after = segments.iter().position(|&segment| segment == "ecs")?;
    let id = segments[after + 1..].last()?;
    let (task, number) = id.split_once('-')?;
    let right =
        task.len() == 32 && is_hex(task) && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    right.then(|| (*id).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4c01db0b339c4f1b0a6f0c2e7d1b8f0f4c01db0b339c4f1b0a6f0c2e7d1b8f0f";
    const OTHER: &str = "aaaadb0b339c4f1b0a6f0c2e7d1b8f0f4c01db0b339c4f1b0a6f0c2e7d1b8f0f";

    #[test]
    fn every_runtime_gives_its_id() {
        for path in [
            format!("0::/system.slice/docker-{ID}.scope"),
            format!("11:memory:/docker/{ID}\n0::/docker/{ID}"),
            format!("0::/docker/{ID}/system.slice/vllm.service"),
            format!("0::/docker/{OTHER}/docker/{ID}"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod9b1c.slice/cri-containerd-{ID}.scope"
            ),
            format!("0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod9b1c.slice/crio-{ID}.scope"),
            format!("0::/kubepods.slice/kubepods-besteffort.slice/crio-{ID}.scope/container"),
            format!("1:name=systemd:/kubepods/burstable/pod9b1c6c2e-0000-4000-8000-000000000000/{ID}"),
            format!("0::/system.slice/containerd.service/kubepods-burstable-pod9b1c.slice:cri-containerd:{ID}"),
            format!("0::/machine.slice/libpod-{ID}.scope/container"),
            format!("0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
            format!("0::/default/{ID}"),
            format!("0::/../../kubepods-besteffort-pod9b1c.slice/cri-containerd-{ID}.scope"),
        ] {
            assert_eq!(container_id(&path).as_deref(), Some(ID), "{path}");
        }
        let task = "0123456789abcdef0123456789abcdef";
        let path = format!("9:perf_event:/ecs/{task}/{task}-1234567890");
        assert_eq!(container_id(&path), Some(format!("{task}-1234567890")));
    }

    #[test]
    fn what_is_no_container_has_no_id() {
        for path in [
            "0::/".to_owned(),
            String::new(),
            "0::/user.slice/user-1000.slice/session-3.scope".to_owned(),
            "4:memory:/process_api/da6b73eafa43d9af9938b47232834fcd\n0::/".to_owned(),
            format!("0::/machine.slice/libpod-conmon-{ID}.scope"),
            format!("0::/kubepods.slice/crio-conmon-{ID}.scope"),
            format!("0::/system.slice/docker-{}.scope", ID.to_uppercase()),
            format!("0::/x/{ID}0"),
            "garbage".to_owned(),
        ] {
            assert_eq!(container_id(&path), None, "{path}");
        }
    }
}
