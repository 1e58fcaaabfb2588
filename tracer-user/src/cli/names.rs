//! `inferspan names`: the CUDA kernels that a library, or every library of a process, registers.
//!
//! A table on stdout, or `--json` (`inferspan.names/1`, one object a library). Written as it is made: libtorch has 24,000 kernels, with 18 MB
//! of demangled names. A library without kernels is no error: an empty list, and a line on stderr.

use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use super::say;
use crate::attach::{files, plan};
use crate::discover::failure::parse_pid;
use crate::discover::{Host, printable_path};
use crate::elf::ElfError;
use crate::exit::{Code, Failure};
use crate::kernel::table::FoundBy;
use crate::kernel::{ScanError, Table};
use crate::names::cache::Cache;
use crate::names::{self, Library, rows};
use crate::proc::Proc;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The library (or program) to read
    #[arg(value_name = "FILE", required_unless_present = "pid", conflicts_with = "pid")]
    pub file: Option<PathBuf>,
    /// Read every library that this process maps
    #[arg(short, long, value_name = "PID", value_parser = parse_pid, allow_negative_numbers = true)]
    pub pid: Option<u32>,
    /// Print JSON (schema `inferspan.names/1`), one object a library
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Code> {
    let out = &mut BufWriter::new(io::stdout().lock());
    let written = match (&args.file, args.pid) {
        (Some(file), _) => of_file(file, args.json, out),
        (None, Some(pid)) => of_process(pid, args.json, out),
        (None, None) => Ok(Ok(Code::Ok)),
    };
    match written.and_then(|code| out.flush().map(|()| code)) {
        // A reader that has seen enough (`| head`) is no error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Code::Ok),
        Err(error) => Err(error.into()),
        Ok(code) => Ok(code?),
    }
}

/// What the user is told, inside what happened to stdout.
type Outcome = io::Result<Result<Code, Failure>>;

fn of_file(path: &Path, json: bool, out: &mut impl Write) -> Outcome {
    let shown = printable_path(path);
    let library = match Library::open(path) {
        Ok(library) => library,
        Err(error) => return Ok(Err(not_opened(&shown, &error))),
    };
    // Read anew: a file that is named may be one that is being made.
    let table = match names::table(&library, None) {
        Ok(table) => table,
        Err(error) => return Ok(Err(not_read(&shown, &error))),
    };
    if table.is_empty() {
        eprintln!("inferspan: {shown} registers no CUDA kernels");
    }
    tell_doubts(&shown, &table);
    if json {
        rows::json(path, &table, out)?;
    } else {
        rows::text(&table, terminal_width(), out)?;
    }
    Ok(Ok(Code::Ok))
}

fn of_process(pid: u32, json: bool, out: &mut impl Write) -> Outcome {
    let mappings = match Host::this().process(pid).and_then(|()| maps(pid)) {
        Ok(mappings) => mappings,
        Err(failure) => return Ok(Err(failure)),
    };
    let cache = Cache::open();
    let mut found = 0;
    for library in plan::libraries([(pid, mappings.as_slice())], |_| true) {
        let shown = printable_path(&library.path);
        let read = files::reach(&library).and_then(|path| Library::open(&path)).map_err(ScanError::from);
        let table = match read.and_then(|library| names::table(&library, cache.as_ref())) {
            Ok(table) => table,
            // What is mapped with the right to run may be anything.
            Err(error) if names::is_no_library(&error) => continue,
            Err(error) => {
                say(&format!("{shown} is not read: {error}"));
                continue;
            }
        };
        tell_doubts(&shown, &table);
        if table.is_empty() {
            continue;
        }
        if json {
            rows::json(&library.path, &table, out)?;
        } else {
            let gap = if found > 0 { "\n" } else { "" };
            writeln!(out, "{gap}{shown}")?;
            rows::text(&table, terminal_width(), out)?;
        }
        found += 1;
    }
    if found == 0 {
        eprintln!("inferspan: no library that process {pid} maps registers CUDA kernels");
    }
    Ok(Ok(Code::Ok))
}

fn maps(pid: u32) -> Result<Vec<crate::proc::text::Mapping>, Failure> {
    Proc::this().maps(pid).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => crate::discover::failure::forbidden(pid, "?"),
        _ => crate::discover::failure::gone(pid),
    })
}

/// What of a table is missing, or less sure than the rest.
fn tell_doubts(shown: &str, table: &Table) {
    if table.found_by == FoundBy::Shape {
        eprintln!("inferspan: {shown} is stripped: its kernels are found by how they are registered");
    }
    if table.unread > 0 {
        eprintln!("inferspan: {shown}: {} registrations could not be read; their kernels are missing", table.unread);
    }
}

fn not_opened(shown: &str, error: &io::Error) -> Failure {
    let (code, fix) = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            (Code::NoTarget, "name a library, such as libtorch_cuda.so")
        }
        io::ErrorKind::PermissionDenied => (Code::Permission, "run inferspan as a user who may read it"),
        _ => (Code::Usage, "name a library, such as libtorch_cuda.so"),
    };
    Failure::new(code, format!("{shown} cannot be opened: {error}"), fix)
}

fn not_read(shown: &str, error: &ScanError) -> Failure {
    let (code, fix) = match error {
        ScanError::Machine(_) => (
            Code::Unsupported,
            "run it on the x86-64 build; launches and the names that handles carry need no scan and work there",
        ),
        ScanError::Elf(ElfError::Read(cause)) if cause.kind() != io::ErrorKind::UnexpectedEof => {
            (Code::Finding, "see that the file can be read as a whole")
        }
        ScanError::Elf(_) => (Code::Usage, "name a library or a program, such as libtorch_cuda.so"),
    };
    Failure::new(code, format!("{shown} holds no names that can be read: {error}"), fix)
}

/// Columns of the terminal that stdout is; nothing where it is none.
fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten()?;
    Some(usize::from(size.ws_col)).filter(|&columns| columns > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_codes_that_scripts_rely_on() {
        for (error, code) in [
            (io::Error::from(io::ErrorKind::NotFound), 3),
            (io::ErrorKind::PermissionDenied.into(), 4),
            (io::ErrorKind::InvalidInput.into(), 2),
        ] {
            assert_eq!(not_opened("x", &error).code as u8, code, "{error}");
        }
        for (error, code) in [
            (ScanError::Machine("aarch64"), 5),
            (ElfError::NotElf.into(), 2),
            (ElfError::Damaged { what: "table of segments" }.into(), 2),
            (ElfError::Read(io::ErrorKind::UnexpectedEof.into()).into(), 2),
            (ElfError::Read(io::ErrorKind::Other.into()).into(), 1),
        ] {
            assert_eq!(not_read("x", &error).code as u8, code, "{error}");
        }
    }
}
