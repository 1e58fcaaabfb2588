//! A file as the loader will lay it out: which address holds which bytes, which code, which pointer.
//!
//! Enters: a [`Source`]. Leaves: bytes and pointers by link-time address. What decides are the program headers and the dynamic section,
//! as for the loader; section headers, which may be missing or lie, only narrow down where code is. Invariant: every look-up is bounded
//! by the caps below. Refused: what [`ElfError`] says.

use std::io;

use object::elf;

use super::ElfError;
use super::relocation::{Kinds, Place, Relocations};
use super::source::{self, Source, u16_in, u32_in, u64_in};

/// Segments that are looked at. A library has a dozen.
const SEGMENTS_MAX: usize = 256;
/// Sections that are looked at. libtorch has 40; an object of many functions may have thousands.
const SECTIONS_MAX: u64 = 65_536;
/// `.plt`, `.plt.got`, `.plt.sec`.
const STUBS_MAX: usize = 8;
/// Entries of the dynamic section. libtorch has 50.
const DYNAMIC_MAX: u64 = 4096;
/// Sizes of the 64-bit headers (gABI, "ELF Header" and following).
const FILE_HEADER: usize = 64;
const PROGRAM_HEADER: u64 = 56;
const SECTION_HEADER: u64 = 64;

/// Which processor's code it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    X86_64,
    Aarch64,
    /// The `EM_*` number of another.
    Other(u16),
}

/// A loadable segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub address: u64,
    pub offset: u64,
    /// Bytes that the file has for it; the rest of its memory is zero.
    pub size: u64,
    pub executable: bool,
    pub writable: bool,
}

impl Segment {
    fn holds(&self, address: u64) -> bool {
        address.checked_sub(self.address).is_some_and(|into| into < self.size)
    }
}

/// A section: what is asked of one here.
#[derive(Debug, Clone)]
pub(super) struct Section {
    pub name: String,
    pub kind: u32,
    pub flags: u64,
    pub address: u64,
    pub offset: u64,
    pub size: u64,
    /// Of a symbol table: the section with its names.
    pub link: u32,
}

/// A stretch of code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    pub address: u64,
    pub offset: u64,
    pub size: u64,
}

/// Where the dynamic section says that the loader's tables are: offsets in the file, and sizes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Dynamic {
    pub relocations: (u64, u64),
    pub jump_slots: (u64, u64),
    pub symbols: u64,
    pub names: (u64, u64),
}

/// A file as it will lie in memory.
#[derive(Debug)]
pub struct Image<'s, S: ?Sized> {
    pub(super) source: &'s S,
    machine: Machine,
    is_fixed: bool,
    segments: Vec<Segment>,
    pub(super) sections: Vec<Section>,
    pub(super) dynamic: Dynamic,
    relocations: Relocations,
}

impl<'s, S: Source + ?Sized> Image<'s, S> {
    /// Reads headers and relocations.
    pub fn read(source: &'s S) -> Result<Self, ElfError> {
        let header = file_header(source)?;
        let machine = match u16_in(&header, 18) {
            number if number == elf::EM_X86_64.0 => Machine::X86_64,
            number if number == elf::EM_AARCH64.0 => Machine::Aarch64,
            number => Machine::Other(number),
        };
        let Headers { segments, dynamic: dynamic_at, .. } = headers(source, &header)?;
        let dynamic =
            dynamic_at.map(|(at, size)| dynamic(source, &segments, at, size)).transpose()?.unwrap_or_default();
        // A file whose section headers are cut away or damaged loads all the same.
        let sections = sections(source, &header).unwrap_or_default();
        let kinds = Kinds::of(machine);
        let relocations = kinds.map(|kinds| Relocations::read(source, &dynamic, kinds)).transpose()?;
        Ok(Self {
            source,
            machine,
            is_fixed: u16_in(&header, 16) == elf::ET_EXEC.0,
            segments,
            sections,
            dynamic,
            relocations: relocations.unwrap_or_default(),
        })
    }

    pub fn source(&self) -> &'s S {
        self.source
    }

    /// Bytes of the file.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.source.read_at(offset, into)
    }

    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// Whether it can lie at its link-time addresses only, so that code may hold them as they are.
    pub fn is_fixed(&self) -> bool {
        self.is_fixed
    }

    /// The segments that hold variables.
    pub fn data(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.writable)
    }

    /// Whether it has a section of a name that `is_wanted`; `None` when it has no section headers.
    pub fn has_section(&self, is_wanted: impl Fn(&str) -> bool) -> Option<bool> {
        (!self.sections.is_empty()).then(|| self.sections.iter().any(|section| is_wanted(&section.name)))
    }

    /// Its stretches of code in rising order, none twice.
    pub fn code(&self) -> Vec<Code> {
        let executable = self.segments.iter().filter(|segment| segment.executable);
        let mut stretches: Vec<Code> = executable
            .map(|segment| Code { address: segment.address, offset: segment.offset, size: segment.size })
            .collect();
        let is_code = |section: &&Section| {
            section.kind == elf::SHT_PROGBITS.0 && section.flags & elf::SHF_EXECINSTR.0 != 0 && section.size > 0
        };
        // A segment of code may also hold the file's tables and constants; sections tell them apart.
        let narrowed: Vec<Code> =
            self.sections.iter().filter(is_code).filter_map(|section| self.clipped(section)).collect();
        if !narrowed.is_empty() {
            stretches = narrowed;
        }
        stretches.sort_by_key(|code| code.address);
        let mut end = 0;
        stretches.retain_mut(|code| {
            let hidden = end.max(code.address) - code.address;
            let is_new = hidden < code.size;
            if is_new {
                (code.address, code.offset, code.size) =
                    (code.address + hidden, code.offset + hidden, code.size - hidden);
                end = code.address + code.size;
            }
            is_new
        });
        stretches
    }

    /// The stretches of code that hold the linker's stubs for imports; none when no section is named so.
    pub fn stubs(&self) -> Vec<Code> {
        let stubs = self.sections.iter().filter(|section| section.name.starts_with(".plt"));
        stubs.filter_map(|section| self.clipped(section)).take(STUBS_MAX).collect()
    }

    /// A section's part that is loaded as code.
    fn clipped(&self, section: &Section) -> Option<Code> {
        let segment = self.segments.iter().find(|segment| segment.executable && segment.holds(section.address))?;
        let into = section.address - segment.address;
        let size = section.size.min(segment.size - into);
        Some(Code { address: section.address, offset: segment.offset + into, size })
    }

    pub fn is_code(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| segment.executable && segment.holds(address))
    }

    /// Where in the file the bytes at an address are; nothing for memory that the file has none for.
    pub fn offset(&self, address: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|segment| segment.holds(address))?;
        Some(segment.offset + (address - segment.address))
    }

    /// Whether these bytes stand at an address. At most 64 are compared.
    pub fn starts(&self, address: u64, with: &[u8]) -> bool {
        let mut bytes = [0; 64];
        let Some(bytes) = bytes.get_mut(..with.len()) else { return false };
        self.offset(address).is_some_and(|offset| self.source.read_at(offset, bytes).is_ok()) && bytes == with
    }

    /// Four bytes at an address, as a number.
    pub fn word(&self, address: u64) -> Option<u32> {
        source::array(self.source, self.offset(address)?).ok().map(u32::from_le_bytes)
    }

    /// The link-time address that will stand at `at` once the file is loaded; nothing where another file decides it, or a zero stands.
    pub fn pointer(&self, at: u64) -> Option<u64> {
        match self.relocations.at(at) {
            Place::Address(address) => return Some(address),
            Place::Elsewhere => return None,
            Place::AsInFile => {}
        }
        let bytes = source::array(self.source, self.offset(at)?).ok()?;
        Some(u64::from_le_bytes(bytes)).filter(|&address| address != 0)
    }

    /// Slots that the loader fills with the addresses of functions: `(slot, index in names)`, by slot. Whether this file or another
    /// one has the function makes no difference.
    pub fn slots(&self, names: &[&str]) -> io::Result<Vec<(u64, usize)>> {
        self.relocations.slots(self.source, &self.dynamic, names)
    }
}

/// What program headers say.
#[derive(Debug, Default)]
struct Headers {
    segments: Vec<Segment>,
    /// Offset and size of the dynamic section, and of notes.
    dynamic: Option<(u64, u64)>,
    notes: Vec<(u64, u64)>,
}

fn headers<S: Source + ?Sized>(source: &S, header: &[u8; FILE_HEADER]) -> Result<Headers, ElfError> {
    let damaged = ElfError::Damaged { what: "table of segments" };
    let (table, entry, count) = (u64_in(header, 32), u16_in(header, 54), u16_in(header, 56));
    if count > 0 && u64::from(entry) != PROGRAM_HEADER {
        return Err(damaged);
    }
    let mut found = Headers::default();
    for number in 0..u64::from(count).min(SEGMENTS_MAX as u64) {
        let Some(at) = table.checked_add(number * PROGRAM_HEADER) else { return Err(damaged) };
        let Ok(entry) = source::array::<{ PROGRAM_HEADER as usize }>(source, at) else { return Err(damaged) };
        let (kind, flags) = (u32_in(&entry, 0), u32_in(&entry, 4));
        let (offset, address, size) = (u64_in(&entry, 8), u64_in(&entry, 16), u64_in(&entry, 32));
        // A file that was cut loads as far as it goes.
        let size = size.min(source.size().saturating_sub(offset)).min(u64::MAX - address);
        if kind == elf::PT_LOAD.0 {
            let (executable, writable) = (flags & elf::PF_X.0 != 0, flags & elf::PF_W.0 != 0);
            found.segments.push(Segment { address, offset, size, executable, writable });
        } else if kind == elf::PT_DYNAMIC.0 {
            found.dynamic = Some((offset, size));
        } else if kind == elf::PT_NOTE.0 {
            found.notes.push((offset, size));
        }
    }
    Ok(found)
}

/// The file's build-id: what its linker made of its contents. Nothing where it has none, or is no ELF file.
pub fn build_id<S: Source + ?Sized>(source: &S) -> Option<Vec<u8>> {
    /// Notes are a few hundred bytes; longer ones are of something else.
    const NOTES_MAX: u64 = 64 << 10;
    /// 20 bytes of a SHA-1 are usual, 8 and 16 are seen.
    const ID: std::ops::RangeInclusive<usize> = 4..=64;
    let header = file_header(source).ok()?;
    for (offset, size) in headers(source, &header).ok()?.notes {
        let mut notes = vec![0; size.min(NOTES_MAX) as usize];
        source.read_at(offset, &mut notes).ok()?;
        let mut rest = notes.as_slice();
        // Sizes of name and contents, the kind, and both, each padded to four bytes (gABI, "Note Section").
        while let Some((sizes, after)) = rest.split_at_checked(12) {
            let (name, id) = (u32_in(sizes, 0) as usize, u32_in(sizes, 4) as usize);
            let Some((text, after)) = after.split_at_checked(name.next_multiple_of(4)) else { break };
            let Some(contents) = after.get(..id) else { break };
            if text.starts_with(b"GNU\0") && name == 4 && u32_in(sizes, 8) == elf::NT_GNU_BUILD_ID.0 && ID.contains(&id)
            {
                return Some(contents.to_vec());
            }
            rest = after.get(id.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    None
}

fn file_header<S: Source + ?Sized>(source: &S) -> Result<[u8; FILE_HEADER], ElfError> {
    if source.size() < FILE_HEADER as u64 {
        return Err(ElfError::NotElf);
    }
    let header: [u8; FILE_HEADER] = source::array(source, 0)?;
    if header[..4] != elf::ELFMAG {
        return Err(ElfError::NotElf);
    }
    // EI_CLASS and EI_DATA.
    if header[4] != elf::ELFCLASS64.0 || header[5] != elf::ELFDATA2LSB.0 {
        return Err(ElfError::NotElf64);
    }
    Ok(header)
}

fn dynamic<S: Source + ?Sized>(source: &S, segments: &[Segment], at: u64, size: u64) -> Result<Dynamic, ElfError> {
    let in_file = |address: u64| {
        let segment = segments.iter().find(|segment| segment.holds(address))?;
        Some(segment.offset + (address - segment.address))
    };
    let mut found = Dynamic::default();
    for number in 0..(size / 16).min(DYNAMIC_MAX) {
        let entry: [u8; 16] = source::array(source, at + number * 16)?;
        let (tag, value) = (u64_in(&entry, 0), u64_in(&entry, 8));
        let place = || in_file(value).unwrap_or(u64::MAX);
        match elf::DynamicTag(tag as i64) {
            elf::DT_NULL => break,
            elf::DT_RELA => found.relocations.0 = place(),
            elf::DT_RELASZ => found.relocations.1 = value,
            elf::DT_JMPREL => found.jump_slots.0 = place(),
            elf::DT_PLTRELSZ => found.jump_slots.1 = value,
            elf::DT_SYMTAB => found.symbols = place(),
            elf::DT_STRTAB => found.names.0 = place(),
            elf::DT_STRSZ => found.names.1 = value,
            _ => {}
        }
    }
    Ok(found)
}

/// The table of sections; nothing when there is none or it cannot be read.
fn sections<S: Source + ?Sized>(source: &S, header: &[u8; FILE_HEADER]) -> Option<Vec<Section>> {
    /// Longest name that is looked at, bytes.
    const NAME_MAX: usize = 256;
    let table = u64_in(header, 40);
    if table == 0 || u64::from(u16_in(header, 58)) != SECTION_HEADER {
        return None;
    }
    let entry = |number: u64| -> Option<[u8; SECTION_HEADER as usize]> {
        source::array(source, table.checked_add(number.checked_mul(SECTION_HEADER)?)?).ok()
    };
    let first = entry(0)?;
    // Counts that do not fit into the file header stand in the first section's (gABI, "Section Header Table Entry: Index 0").
    let count = match u16_in(header, 60) {
        0 => u64_in(&first, 32),
        count => u64::from(count),
    };
    let names = match u16_in(header, 62) {
        number if number == elf::SHN_XINDEX.0 => u64::from(u32_in(&first, 40)),
        number => u64::from(number),
    };
    let names = u64_in(&entry(names)?, 24);
    let mut window = source::Window::new(source);
    let mut sections = Vec::new();
    for number in 0..count.min(SECTIONS_MAX) {
        let entry = entry(number)?;
        let name = names.saturating_add(u64::from(u32_in(&entry, 0)));
        let name = window.text(name, NAME_MAX).ok().flatten().unwrap_or_default();
        sections.push(Section {
            name: String::from_utf8_lossy(name).into_owned(),
            kind: u32_in(&entry, 4),
            flags: u64_in(&entry, 8),
            address: u64_in(&entry, 16),
            offset: u64_in(&entry, 24),
            size: u64_in(&entry, 32),
            link: u32_in(&entry, 40),
        });
    }
    Some(sections)
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
