//! What a shared library calls itself and exports, read piece by piece.
//!
//! Enters: a file, of a gigabyte or more. Leaves: its SONAME, its exported functions, and points for probes. Only headers, the dynamic
//! symbols and the first bytes of functions are read. Refused: what is no 64-bit x86 ELF file, and tables over [`TABLE_MAX`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use object::elf::{DT_SONAME, EM_X86_64, SHN_UNDEF, SHT_DYNAMIC, SHT_DYNSYM, STT_FUNC, STT_NOTYPE};
use object::read::ReadCache;
use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _};
use object::{Endianness, elf};

use super::code::{Segment, file_offset};
use super::family::{Point, Program};
use super::prologue::{self, Place};

/// Bytes of a table of symbols or strings; libtorch_cuda exports 30,000 functions.
const TABLE_MAX: u64 = 64 << 20;
/// Functions that are kept of one file.
const FUNCTIONS_MAX: usize = 200_000;

/// A library's exports.
#[derive(Debug)]
pub struct Exports {
    file: File,
    soname: Option<String>,
    segments: Vec<Segment>,
    functions: BTreeMap<String, u64>,
}

type Elf<'a> = ElfFile64<'a, Endianness, &'a ReadCache<File>>;

/// Hands a file's ELF structure to `look`; nothing where it is none that can be probed.
fn with_elf<T>(file: &File, look: impl FnOnce(&Elf<'_>, &ReadCache<File>) -> Option<T>) -> io::Result<Option<T>> {
    let mut magic = [0; 20];
    if file.read_exact_at(&mut magic, 0).is_err() || &magic[..5] != b"\x7fELF\x02" {
        return Ok(None);
    }
    let cache = ReadCache::new(file.try_clone()?);
    let Ok(elf) = Elf::parse(&cache) else { return Ok(None) };
    if elf.elf_header().e_machine(elf.endian()) != EM_X86_64 {
        return Ok(None);
    }
    let tables = [SHT_DYNSYM, SHT_DYNAMIC, elf::SHT_STRTAB];
    let is_large = elf.elf_section_table().iter().any(|section| {
        let kind = section.sh_type(elf.endian());
        tables.contains(&kind) && kind != elf::SHT_STRTAB && section.sh_size(elf.endian()) > TABLE_MAX
    });
    Ok(if is_large { None } else { look(&elf, &cache) })
}

/// What a library calls itself.
pub fn soname(file: &File) -> io::Result<Option<String>> {
    with_elf(file, soname_of)
}

fn soname_of(elf: &Elf<'_>, cache: &ReadCache<File>) -> Option<String> {
    let endian = elf.endian();
    let sections = elf.elf_section_table();
    let (entries, link) = sections.dynamic(endian, cache).ok()??;
    let strings = sections.strings(endian, cache, link).ok()?;
    let entry = entries.iter().find(|entry| entry.d_tag(endian) == DT_SONAME)?;
    let name = strings.get(u32::try_from(entry.d_val(endian)).ok()?).ok()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

impl Exports {
    /// Reads what a library exports; nothing where it is none.
    pub fn read(file: &File) -> io::Result<Option<Self>> {
        let found = with_elf(file, |elf, cache| {
            let endian = elf.endian();
            let segments = elf.elf_program_headers().iter().filter(|header| header.p_type(endian) == elf::PT_LOAD);
            let segments: Vec<Segment> = segments
                .map(|header| Segment {
                    address: header.p_vaddr(endian),
                    offset: header.p_offset(endian),
                    size: header.p_filesz(endian),
                    executable: header.p_flags(endian).contains(elf::PF_X),
                })
                .collect();
            // Written in assembly they may have no type; of an indirect one this address is not where callers go.
            let is_function = |symbol: &elf::Sym64<Endianness>| {
                matches!(symbol.st_type(), STT_FUNC | STT_NOTYPE)
                    && symbol.st_shndx(endian) != SHN_UNDEF
                    && file_offset(symbol.st_value(endian), &segments).is_some()
            };
            let symbols = elf.elf_section_table().symbols(endian, cache, SHT_DYNSYM).ok()?;
            let strings = symbols.strings();
            let functions = symbols
                .iter()
                .filter(|symbol| is_function(symbol))
                .take(FUNCTIONS_MAX)
                .filter_map(|symbol| {
                    let name = std::str::from_utf8(symbol.name(endian, strings).ok()?).ok()?;
                    Some((name.to_owned(), symbol.st_value(endian)))
                })
                .collect();
            Some((soname_of(elf, cache), segments, functions))
        })?;
        let Some((soname, segments, functions)) = found else { return Ok(None) };
        Ok(Some(Self { file: file.try_clone()?, soname, segments, functions }))
    }

    /// What the library calls itself.
    pub fn soname(&self) -> Option<&str> {
        self.soname.as_deref()
    }

    pub fn has(&self, name: &str) -> bool {
        self.functions.contains_key(name)
    }

    /// Bytes of the file from an offset; fewer where it ends.
    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let read = self.file.read_at(&mut bytes, offset).unwrap_or(0);
        bytes.truncate(read);
        bytes
    }

    /// Where to probe an exported function so that its arguments are there; nothing where it is not exported.
    pub fn point(&self, programs: &'static [Program], function: u32, symbol: &str) -> Option<Point> {
        let offset = file_offset(*self.functions.get(symbol)?, &self.segments)?;
        let code = self.bytes(offset, prologue::BYTES);
        let Place { at: quickest, is_emulated, why } = prologue::untouched(&code);
        Some(Point { programs, function, offset, quickest, is_emulated, why, code, symbol: symbol.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::family::ENTERED;

    /// This test's own C library.
    fn libc() -> File {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("libc.so"));
        File::open(path.expect("a C library is mapped")).expect("open")
    }

    #[test]
    fn the_c_library_says_its_name_and_where_its_functions_are() {
        assert_eq!(soname(&libc()).expect("read").as_deref(), Some("libc.so.6"));
        let exports = Exports::read(&libc()).expect("read").expect("a library");
        assert!(exports.has("getenv") && !exports.has("cuInit"));
        assert!(!exports.has("strlen"), "an indirect function: callers go elsewhere");
        assert!(!exports.has("environ") && !exports.has("GLIBC_2.2.5"), "no code");
        assert_eq!(exports.soname(), Some("libc.so.6"));
        let point = exports.point(ENTERED, 7, "getenv").expect("a function");
        assert!(!exports.bytes(point.offset, 16).is_empty());
        assert_eq!(exports.point(ENTERED, 7, "cuInit"), None);
    }

    #[test]
    fn what_is_no_library_is_none() {
        let text = File::open(file!().split_once('/').map_or("Cargo.toml", |_| "Cargo.toml")).expect("open");
        assert_eq!(soname(&text).expect("read"), None);
        assert!(Exports::read(&text).expect("read").is_none());
    }
}
