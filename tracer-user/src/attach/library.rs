//! Reads what the plan needs: a process's executable mappings, an ELF file's symbols and segments.
//!
//! Files are opened through `/proc/<pid>/map_files`, which is the mapped inode itself even when its path was replaced or
//! lies in another mount namespace; where that is not allowed, through `/proc/<pid>/root`, checked to be the same inode.
//! Refused: files of more than [`FILE_BYTES_MAX`], and symbol tables longer than [`SYMBOLS_MAX`].

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, SegmentFlags, SymbolKind};
use tracer_ebpf::wire::call::FUNCTION_CLOCK;

use super::plan::{self, Library, Point, Segment};
use super::{prologue, python};
use crate::discover::kind::Kind;
use crate::discover::text::{self, Mapping};

/// The tokenizer library is 11 MB, an interpreter with debug information 35; nothing that is worth probing is near this.
const FILE_BYTES_MAX: u64 = 1 << 28;
/// The tokenizer library has 25,090 symbols.
const SYMBOLS_MAX: usize = 4_000_000;
/// A vLLM process has some 2,000 mappings.
const MAPPINGS_MAX: usize = 100_000;

/// The file mappings of a process.
pub fn mappings(pid: u32) -> io::Result<Vec<Mapping>> {
    let text = fs::read(format!("/proc/{pid}/maps"))?;
    Ok(text::maps(&text).take(MAPPINGS_MAX).collect())
}

/// A path that leads to the library's very inode.
pub fn reach(library: &Library) -> io::Result<PathBuf> {
    let (pid, start, end) = library.through;
    let exact = PathBuf::from(format!("/proc/{pid}/map_files/{start:x}-{end:x}"));
    if File::open(&exact).is_ok() {
        return Ok(exact);
    }
    let below = library.path.strip_prefix("/").unwrap_or(&library.path);
    let by_name = PathBuf::from(format!("/proc/{pid}/root")).join(below);
    if fs::metadata(&by_name)?.ino() != library.inode {
        return Err(io::Error::other("the file at its path is not the one that is mapped"));
    }
    Ok(by_name)
}

/// The points to probe in the library that `path` leads to; empty when it has none, or is stripped of their names.
pub fn points(path: &Path, kind: Kind) -> io::Result<Vec<Point>> {
    let file = File::open(path)?;
    if file.metadata()?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("the file is too large to be such a library"));
    }
    // As a whole: a read a symbol name takes fifty times longer. Not mapped: the file is the target's, and may shrink.
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let elf = object::File::parse(&*bytes).map_err(io::Error::other)?;
    let segments: Vec<Segment> = elf
        .segments()
        .map(|segment| {
            let (offset, size) = segment.file_range();
            let executable =
                matches!(segment.flags(), SegmentFlags::Elf { p_flags, .. } if p_flags.contains(object::elf::PF_X));
            Segment { address: segment.address(), offset, size, executable }
        })
        .collect();
    if kind == Kind::Interpreter {
        let clock = python::time_time(&elf).and_then(|address| plan::file_offset(address, &segments));
        let point = |offset| Point { function: FUNCTION_CLOCK, offset, quickest: 0, symbol: "time.time".to_owned() };
        return Ok(place(clock.map(point).into_iter().collect(), &bytes));
    }
    let symbols = elf
        .symbols()
        .take(SYMBOLS_MAX)
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter_map(|symbol| Some((symbol.name().ok()?, symbol.address())));
    Ok(place(plan::points(kind, symbols, &segments), &bytes))
}

/// Chooses where each point is probed, by its code in the file.
fn place(mut points: Vec<Point>, file: &[u8]) -> Vec<Point> {
    for point in &mut points {
        let from = usize::try_from(point.offset).unwrap_or(usize::MAX).min(file.len());
        let to = from.saturating_add(prologue::BYTES).min(file.len());
        point.quickest = prologue::quickest(&file[from..to]);
    }
    points
}
