//! Checks of what a server's processes map of CUDA: driver, runtime, NCCL; how many points, what they cost, which are left alone.

use super::Check;
use crate::attach::family::Point;
use crate::attach::survey::{self, Judged, Surveyed};
use crate::discover::{ServerProcesses, printable_path};
use crate::input::Probe;
use crate::proc::Proc;
use crate::proc::text::Mapping;

const NAME: &str = "cuda";

/// One check a library; one that says so where none is mapped.
pub(super) fn checks(found: &ServerProcesses) -> Vec<Check> {
    let checks = of_bare(found);
    if checks.is_empty() { vec![Check::ok(NAME, "no CUDA library is mapped")] } else { checks }
}

/// The same of a process that is no server, which need not use CUDA.
pub(super) fn of_bare(found: &ServerProcesses) -> Vec<Check> {
    let proc = Proc::this();
    let processes: Vec<_> = found
        .processes
        .iter()
        .filter_map(|process| Some((process.pid, process.role, proc.maps(process.pid).ok()?)))
        .collect();
    let surveyed = survey::processes(&processes, false);
    let mut checks: Vec<Check> = surveyed.iter().filter(|library| is_told(library)).map(judge).collect();
    if !checks.is_empty() {
        checks.extend(processes.iter().find_map(|(pid, _, maps)| memory_hooks(maps).map(|path| hooked(*pid, &path))));
    }
    checks
}

/// UCX, which rewrites the driver's memory functions in memory (`libucm.so.0`).
pub fn memory_hooks(maps: &[Mapping]) -> Option<String> {
    let is_ucm = |mapping: &&Mapping| {
        mapping.path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"libucm.so"))
    };
    maps.iter().find(is_ucm).map(|mapping| printable_path(&mapping.path))
}

fn hooked(pid: u32, path: &str) -> Check {
    let detail = format!(
        "{path} is mapped in process {pid}: UCX changes libcuda's memory functions there, and none of them is probed; memory is seen at libcudart"
    );
    Check::ok(NAME, detail)
}

/// What only looks like CUDA is nobody's concern, nor is what is left to the driver on purpose.
fn is_told(library: &Surveyed) -> bool {
    let is_left = library.family.unless.is_some() && library.points.iter().all(|judged| judged.refused.is_some());
    library.family.probe == Probe::Cuda && library.is_one && !is_left
}

fn judge(library: &Surveyed) -> Check {
    let Surveyed { family, path, points, refused, .. } = library;
    let (what, path, without) = (family.what, printable_path(path), family.without);
    if let Some(why) = refused {
        return Check::warn(NAME, format!("the {what} in {path} is not probed: {why}; {without}"), "none needed");
    }
    let left: Vec<String> = points
        .iter()
        .filter_map(|judged| Some(format!("{} {}", judged.point.symbol, judged.refused.as_ref()?)))
        .collect();
    let of_use = points.iter().filter(|judged| judged.refused.is_none());
    let probed = points.len() - left.len();
    let stepped: Vec<&Point> = of_use.map(|judged| &judged.point).filter(|point| !point.is_emulated).collect();
    let detail = format!("{what}: {probed} points in {path}");
    match (left.as_slice(), stepped.as_slice()) {
        ([], []) => Check::ok(NAME, format!("{detail}{}", places(points))),
        ([], [slow, ..]) => Check::warn(
            NAME,
            // Measured: docs/architecture.md, decision 5.
            format!(
                "{detail}; {} of them by single steps, which take about 10 µs a call instead of 1: {} at {}",
                stepped.len(),
                slow.symbol,
                slow.why
            ),
            "none needed; `inferspan probes` shows which, and `--level requests` does without",
        ),
        ([first, ..], _) => Check::warn(
            NAME,
            format!("{detail}; {} are left alone: {first}; {without}, where they are what is called", left.len()),
            "another tool changes this code in memory (UCX, a profiler); without it they are probed",
        ),
    }
}

/// On which instructions the points lie, and why: of the first, which stands for the rest.
fn places(points: &[Judged]) -> String {
    let first = points.iter().find(|judged| judged.refused.is_none()).map(|judged| &judged.point);
    first.map(|point| format!("; {} at +{}: {}", point.symbol, point.quickest, point.why)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use crate::attach::family::driver::DRIVER;
    use crate::proc::text;

    fn driver(points: &[(bool, Option<&str>)]) -> Surveyed {
        let judged = |(is_emulated, refused): &(bool, Option<&str>)| Judged {
            point: Point { is_emulated: *is_emulated, symbol: "cuInit".into(), ..Point::default() },
            refused: refused.map(str::to_owned),
        };
        let points = points.iter().map(judged).collect();
        let (path, soname) = ("/libcuda.so.1".into(), Some("libcuda.so.1".into()));
        Surveyed {
            family: &DRIVER,
            path,
            soname,
            is_one: true,
            processes: vec![1],
            points,
            refused: None,
            names_at: None,
        }
    }

    #[test]
    fn what_costs_more_or_is_left_alone_is_a_warning() {
        let well = judge(&driver(&[(true, None)]));
        assert_eq!(well.status, Status::Ok);
        assert!(well.detail.starts_with("CUDA driver: 1 points in /libcuda.so.1; cuInit at +0: the "), "{well:?}");
        let stepped = judge(&driver(&[(true, None), (false, None)]));
        assert_eq!(stepped.status, Status::Warn);
        assert!(stepped.detail.contains("2 points in /libcuda.so.1; 1 of them by single steps"), "{stepped:?}");
        assert!(stepped.detail.ends_with("cuInit at the entry: its bytes are no instruction"), "{stepped:?}");
        let left = judge(&driver(&[(true, None), (false, Some("in process 1: patched"))]));
        assert_eq!(left.status, Status::Warn);
        assert!(left.detail.contains("1 points") && left.detail.contains("1 are left alone: cuInit in process 1"));
    }

    #[test]
    fn a_process_with_ucx_is_told_of() {
        let maps = |file: &str| {
            let line = format!("7f00-7f10 r-xp 00000000 08:01 7 /opt/ucx/lib/{file}\n");
            memory_hooks(&text::maps(line.as_bytes()).collect::<Vec<_>>())
        };
        assert_eq!(maps("libucm.so.0.0.0").as_deref(), Some("/opt/ucx/lib/libucm.so.0.0.0"));
        assert_eq!(maps("libucs.so.0"), None);
        let check = hooked(7, "/opt/ucx/lib/libucm.so.0");
        assert_eq!(check.status, Status::Ok);
        assert!(check.detail.contains("process 7") && check.detail.contains("none of them is probed"), "{check:?}");
    }

    #[test]
    fn a_library_without_its_functions_says_what_is_missing() {
        let hidden = Surveyed { refused: Some(DRIVER.hidden.into()), ..driver(&[]) };
        assert!(is_told(&hidden));
        assert!(judge(&hidden).detail.ends_with("it exports no launch function; launches are not seen"));
    }
}
