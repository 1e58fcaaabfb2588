//! Reads what the plan needs: a process's executable mappings, an ELF file's symbols and segments.
//!
//! Files are opened through `/proc/<pid>/map_files`, which is the mapped inode itself even when its path was replaced or
//! lies in another mount namespace; where that is not allowed, through `/proc/<pid>/root`, checked to be the same inode.
//! Refused: files of more than [`FILE_BYTES_MAX`], and symbol tables longer than [`SYMBOLS_MAX`].

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use object::read::ReadCache;
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, SegmentFlags, SymbolKind};

use super::plan::{self, Library, Mapping, Point, Segment};

/// The tokenizer library is 11 MB; nothing that is worth probing is near this.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// The tokenizer library has 25,090 symbols.
const SYMBOLS_MAX: usize = 4_000_000;
/// A vLLM process has some 2,000 mappings.
const MAPPINGS_MAX: usize = 100_000;

/// The executable file mappings of a process.
pub fn mappings(pid: u32) -> io::Result<Vec<Mapping>> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(text.lines().take(MAPPINGS_MAX).filter_map(mapping).collect())
}

/// `7f12a000-7f12b000 r-xp 00001000 08:01 1234   /path with spaces`
fn mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let executable = fields.next()?.as_bytes().get(2) == Some(&b'x');
    let _offset = fields.next()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode: u64 = fields.next()?.parse().ok()?;
    let path = fields.next()?.trim_start();
    if !executable || inode == 0 || !path.starts_with('/') {
        return None;
    }
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some(Mapping {
        start: hex(start)?,
        end: hex(end)?,
        device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
        inode,
        path: path.to_owned(),
    })
}

/// A path that leads to the library's very inode.
pub fn reach(library: &Library) -> io::Result<PathBuf> {
    let (pid, start, end) = library.through;
    let exact = PathBuf::from(format!("/proc/{pid}/map_files/{start:x}-{end:x}"));
    if File::open(&exact).is_ok() {
        return Ok(exact);
    }
    let by_name = PathBuf::from(format!("/proc/{pid}/root{}", library.path));
    if fs::metadata(&by_name)?.ino() != library.inode {
        return Err(io::Error::other("the file at its path is not the one that is mapped"));
    }
    Ok(by_name)
}

/// The points to probe in the library that `path` leads to; empty when it is stripped.
pub fn points(path: &PathBuf) -> io::Result<Vec<Point>> {
    let file = File::open(path)?;
    if file.metadata()?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("the file is too large to be a tokenizer library"));
    }
    // Reads what is asked for, not the file.
    let cache = ReadCache::new(file);
    let elf = object::File::parse(&cache).map_err(io::Error::other)?;
    let segments: Vec<Segment> = elf
        .segments()
        .map(|segment| {
            let (offset, size) = segment.file_range();
            let executable =
                matches!(segment.flags(), SegmentFlags::Elf { p_flags, .. } if p_flags.contains(object::elf::PF_X));
            Segment { address: segment.address(), offset, size, executable }
        })
        .collect();
    let symbols = elf
        .symbols()
        .take(SYMBOLS_MAX)
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter_map(|symbol| Some((symbol.name().ok()?, symbol.address())));
    Ok(plan::points(symbols, &segments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_line_is_read_with_spaces_in_its_path() {
        let line =
            "7f0000001000-7f0000002000 r-xp 00001000 08:1f 1234                       /opt/my venv/tokenizers.abi3.so";
        let mapping = mapping(line).unwrap();
        assert_eq!((mapping.start, mapping.end), (0x7f00_0000_1000, 0x7f00_0000_2000));
        assert_eq!((mapping.device, mapping.inode), ((8, 0x1f), 1234));
        assert_eq!(mapping.path, "/opt/my venv/tokenizers.abi3.so");
    }

    #[test]
    fn data_anonymous_and_special_mappings_are_no_libraries() {
        for line in [
            "7f0000001000-7f0000002000 rw-p 00001000 08:1f 1234   /x.so",
            "7f0000001000-7f0000002000 r-xp 00000000 00:00 0 ",
            "7f0000001000-7f0000002000 r-xp 00000000 00:00 0   [vdso]",
            "garbage",
        ] {
            assert_eq!(mapping(line), None, "{line}");
        }
    }
}
