//! `inferspan probes`: what would be probed in a library, or in every library of a process, and what would be left alone, and why.
//!
//! A table on stdout, or `--json` (`inferspan.probes/1`). It attaches nothing and needs only to read. A library without points is no
//! error: it says why, or, where no family knows it, is not there.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{print, print_json, say};
use crate::attach::family::{Point, Scope};
use crate::attach::handles::NamesAt;
use crate::attach::survey::{self, Judged, Surveyed};
use crate::discover::failure::{forbidden, gone, parse_pid};
use crate::discover::{self, Host, printable_path};
use crate::doctor::memory_hooks;
use crate::engine;
use crate::exit::{Code, Failure};
use crate::input::Role;
use crate::proc::Proc;
use crate::sanitise::sanitise;

/// Characters of a symbol that are shown; Rust's are mangled, and JSON has them whole.
const SYMBOL_MAX: usize = 60;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The library to read
    #[arg(value_name = "FILE", required_unless_present = "pid", conflicts_with = "pid")]
    pub file: Option<PathBuf>,
    /// Read every library that this process maps
    #[arg(short, long, value_name = "PID", value_parser = parse_pid, allow_negative_numbers = true)]
    pub pid: Option<u32>,
    /// Print JSON (schema `inferspan.probes/1`)
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    let Found { libraries, hooks } = match (args.pid, &args.file) {
        (Some(pid), _) => of_process(pid)?,
        (None, Some(file)) => {
            let libraries = survey::file(file).map_err(|error| not_opened(&printable_path(file), &error))?;
            Found { libraries, hooks: None }
        }
        (None, None) => Found::default(),
    };
    if args.json {
        print_json(&document(args.pid, &libraries, hooks.as_deref()))?;
    } else {
        print(&libraries.iter().map(text).collect::<Vec<_>>().join("\n"))?;
        say(&summary(&libraries));
        if let Some(path) = hooks {
            say(&format!("{path} (UCX) changes libcuda's memory functions; none of them would be probed"));
        }
    }
    Ok(Code::Ok)
}

/// What was found.
#[derive(Debug, Default)]
struct Found {
    libraries: Vec<Surveyed>,
    /// What changes the driver's memory functions in memory.
    hooks: Option<String>,
}

/// One process, in the role that it has in its server; one that belongs to none is looked at as `--cuda-only` looks at it.
fn of_process(pid: u32) -> Result<Found, Failure> {
    Host::this().process(pid)?;
    let server = discover::server(pid).ok();
    let role = server.as_ref().and_then(|found| found.processes.iter().find(|process| process.pid == pid));
    let role = role.map_or(Role::Worker, |process| process.role);
    let has_messages = server.is_some_and(|found| engine::by_name(&found.server.engine).has_messages());
    let mappings = Proc::this().maps(pid).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => forbidden(pid, "?"),
        _ => gone(pid),
    })?;
    let hooks = memory_hooks(&mappings);
    Ok(Found { libraries: survey::processes(&[(pid, role, mappings)], has_messages), hooks })
}

fn not_opened(shown: &str, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Code::NoTarget,
        io::ErrorKind::PermissionDenied => Code::Permission,
        _ => Code::Usage,
    };
    Failure::new(code, format!("{shown} cannot be opened: {error}"), "name a library, such as libcudart.so.12")
}

fn document(process: Option<u32>, found: &[Surveyed], hooks: Option<&str>) -> Value {
    let libraries: Vec<Value> = found
        .iter()
        .map(|library| {
            json!({
                "path": printable_path(&library.path),
                "soname": library.soname,
                "family": library.family.what,
                "level": library.family.level.name(),
                "refused": library.refused,
                "name_offset": library.names_at.map(|names| names.offset),
                "name_offset_from": library.names_at.and_then(|names| names.known_by),
                "points": library.points.iter().map(point).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "schema": "inferspan.probes/1", "process": process, "memory_hooks": hooks, "libraries": libraries })
}

fn point(Judged { point, refused }: &Judged) -> Value {
    json!({
        "symbol": point.symbol,
        "offset": point.offset,
        "at": point.quickest,
        "emulated": point.is_emulated,
        "why": point.why.to_string(),
        "programs": programs(point),
        "refused": refused,
    })
}

fn programs(point: &Point) -> Vec<&'static str> {
    point.programs.iter().map(|program| program.name).collect()
}

fn text(library: &Surveyed) -> String {
    let Surveyed { family, path, soname, points, refused, names_at, .. } = library;
    let soname = soname.as_deref().unwrap_or("-");
    let whom = if family.scope == Scope::File { "for all who map it" } else { "in each process" };
    let level = family.level.name();
    let head = format!("{}  ({}, SONAME {soname}; level {level}, {whom})", printable_path(path), family.what);
    let mut text = format!("{}\n", sanitise(&head, head.len()));
    if let Some(why) = refused {
        let _ = writeln!(text, "  not probed: {}", sanitise(why, why.len()));
    }
    if let Some(NamesAt { offset, known_by }) = names_at {
        let how =
            known_by.map_or_else(|| "as in every known driver".to_owned(), |giver| format!("as {giver} reads it"));
        let _ = writeln!(text, "  a kernel's name is at {offset} of its handle, {how}");
    }
    let symbols: Vec<String> =
        points.iter().map(|judged| sanitise(&judged.point.symbol, SYMBOL_MAX).into_owned()).collect();
    let width = symbols.iter().map(|symbol| symbol.chars().count()).max().unwrap_or_default();
    for (Judged { point, refused }, symbol) in points.iter().zip(&symbols) {
        let at = if point.quickest == 0 { "entry".to_owned() } else { format!("+{}", point.quickest) };
        let how = if point.is_emulated { "emulated" } else { "single step" };
        let programs = programs(point).join(", ");
        let _ = write!(text, "  {symbol:width$}  {:#010x}  {at:5}  {how:11}  {programs}", point.offset);
        let _ = write!(text, "  ({})", point.why);
        let why = refused.as_ref().map(|why| format!("  refused: {}", sanitise(why, why.len())));
        let _ = writeln!(text, "{}", why.unwrap_or_default());
    }
    text
}

fn summary(found: &[Surveyed]) -> String {
    let points = || found.iter().flat_map(|library| &library.points);
    let refused = points().filter(|judged| judged.refused.is_some()).count();
    let stepped = points().filter(|judged| judged.refused.is_none() && !judged.point.is_emulated).count();
    let probed = points().count() - refused;
    format!("{probed} points would be probed, {stepped} of them by single steps; {refused} would be left alone")
}
