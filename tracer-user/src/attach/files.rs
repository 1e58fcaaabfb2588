//! Reads the library files that targets map.
//!
//! Enters: mappings. Leaves: the points of a family in a file. Files are opened through `/proc/<pid>/map_files`, which is the mapped
//! inode itself even when its path was replaced or lies in another mount namespace; where that is not allowed, through
//! `/proc/<pid>/root`, checked to be the same inode. Refused: files of more than [`FILE_BYTES_MAX`].

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::code::Code;
use super::exports::{self, Exports};
use super::family::{ALIKE_MAX, Family, Find, Point};
use super::plan::Library;
use crate::proc::Proc;
use crate::proc::text::Mapping;

/// The tokenizer library is 11 MB, an interpreter with debug information 35; nothing that is worth probing is near this.
const FILE_BYTES_MAX: u64 = 1 << 28;
/// The longest x86-64 instruction.
const INSTRUCTION_MAX: usize = 15;
/// `int3`, which a uprobe is.
const BREAKPOINT: u8 = 0xcc;

/// A path that leads to the library's very inode.
pub fn reach(library: &Library) -> io::Result<PathBuf> {
    let (pid, start, end) = library.through;
    let proc = Proc::this();
    let exact = proc.mapped_file(pid, start, end);
    if File::open(&exact).is_ok() {
        return Ok(exact);
    }
    let below = library.path.strip_prefix("/").unwrap_or(&library.path);
    let is_it = |path: &Path| fs::metadata(path).map(|file| file.ino() == library.inode);
    let by_name = proc.root_of(pid).join(below);
    match is_it(&by_name) {
        Ok(true) => Ok(by_name),
        Ok(false) => Err(io::Error::other("the file at its path is not the one that is mapped")),
        // The process is gone, and the file may be there all the same.
        Err(_) if is_it(&library.path).is_ok_and(|is_it| is_it) => Ok(library.path.clone()),
        Err(error) => Err(error),
    }
}

/// The points of a family in the library that `path` leads to; empty when it has none, or is stripped of their names; `None` when it is no
/// such library, and only looks like one. All or nothing: an error where more than [`ALIKE_MAX`] are found by what they look like.
pub fn points(path: &Path, family: &Family) -> io::Result<Option<Vec<Point>>> {
    let file = File::open(path)?;
    let find = match family.points {
        Find::Exports(find) => return Ok(Exports::read(&file)?.as_ref().and_then(find)),
        Find::Code(find) => find,
    };
    if file.metadata()?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("the file is too large to be such a library"));
    }
    // As a whole: a read a symbol name takes fifty times longer. Not mapped: the file is the target's, and may shrink.
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let code = Code::parse(&bytes).map_err(io::Error::other)?;
    let points = find(&code);
    if points.len() > ALIKE_MAX {
        let many = format!("{} of its functions look like those that are probed, and {ALIKE_MAX} may", points.len());
        return Err(io::Error::other(many));
    }
    Ok(Some(points))
}

/// What the library that `path` leads to calls itself.
pub fn soname(path: &Path) -> io::Result<Option<String>> {
    exports::soname(&File::open(path)?)
}

/// Why a point of a process must be left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Patched {
    #[error("its code is not mapped")]
    Unmapped,
    #[error("its code can be written to, so a probe there may be overwritten or take a patch away")]
    Writable,
    #[error("its code was patched in memory, and a probe would run the file's instead")]
    Differs,
    #[error("its code cannot be read")]
    Unreadable,
}

/// Whether the code of a point in a process is the file's: a uprobe runs the file's instruction, whatever stands there (measured: the
/// target dies of it). A breakpoint, which another tracer's probe is, may stand where one is to be.
pub fn is_as_in_file(process: u32, mappings: &[Mapping], library: &Library, point: &Point) -> Result<(), Patched> {
    let end = point.offset + point.code.len() as u64;
    let of_file = |mapping: &&Mapping| {
        let size = mapping.end - mapping.start;
        (mapping.device, mapping.inode) == library.id()
            && mapping.executable
            && mapping.offset < end
            && point.offset < mapping.offset.saturating_add(size)
    };
    let mapping = mappings.iter().find(of_file).ok_or(Patched::Unmapped)?;
    if mapping.writable {
        return Err(Patched::Writable);
    }
    if point.offset < mapping.offset {
        return Err(Patched::Differs);
    }
    let in_it = usize::try_from(mapping.offset + (mapping.end - mapping.start) - point.offset).unwrap_or(usize::MAX);
    let wanted = point.code.len().min(in_it).min(point.quickest as usize + INSTRUCTION_MAX);
    let mut live = vec![0; wanted];
    let address = mapping.start + (point.offset - mapping.offset);
    Proc::this().memory(process, address, &mut live).map_err(|_| Patched::Unreadable)?;
    let is_same =
        live.iter().zip(&point.code).enumerate().all(|(at, (live, file))| {
            live == file || (*live == BREAKPOINT && (at == 0 || at as u64 == point.quickest))
        });
    if is_same { Ok(()) } else { Err(Patched::Differs) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::Level;
    use crate::attach::family::{ENTERED, Library as Kind, Scope};
    use crate::input::Probe;

    #[test]
    fn a_library_with_too_many_look_alikes_is_left_alone() {
        let family = |points| Family {
            what: "",
            without: "",
            probe: Probe::FrontEnd,
            library: Kind::Path(|_| true),
            roles: &[],
            scope: Scope::File,
            level: Level::Requests,
            needs_messages: false,
            unless: None,
            likeness: None,
            names_kernels: false,
            points: Find::Code(points),
            hidden: "",
        };
        // This very binary has thousands of functions, and this one.
        let itself = Path::new("/proc/self/exe");
        let all = points(itself, &family(|code| code.functions(ENTERED, |_| Some(1))));
        assert!(all.expect_err("too many").to_string().ends_with("and 64 may"));
        let this = points(
            itself,
            &family(|code| code.functions(ENTERED, |symbol| symbol.contains("with_too_many_look_alikes").then_some(1))),
        );
        assert!(!this.expect("read").expect("a library").is_empty());
    }
}
