//! The code in an ELF file: functions by name or address, and where in the file they lie.
//!
//! Enters: the bytes of a file that a target maps. Leaves: [`Point`]s. Pure: [`super::files`] reads. Symbols are matched by a rule and
//! not by name, because Rust's mangled names carry a hash that changes with every build. Refused: what is no ELF file, and symbol tables
//! longer than [`SYMBOLS_MAX`].

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, SegmentFlags, SymbolKind};

use super::family::{Point, Program};
use super::prologue::{self, Place};

/// The tokenizer library has 25,090 symbols.
const SYMBOLS_MAX: usize = 4_000_000;

/// A file with code in it.
#[derive(Debug)]
pub struct Code<'a> {
    bytes: &'a [u8],
    file: object::File<'a>,
    segments: Vec<Segment>,
}

/// A loadable segment of an ELF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub address: u64,
    pub offset: u64,
    pub size: u64,
    pub executable: bool,
}

impl<'a> Code<'a> {
    /// Reads the file's tables; its symbols only when they are asked for.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, object::Error> {
        let file = object::File::parse(bytes)?;
        let segments = file
            .segments()
            .map(|segment| {
                let (offset, size) = segment.file_range();
                let executable =
                    matches!(segment.flags(), SegmentFlags::Elf { p_flags, .. } if p_flags.contains(object::elf::PF_X));
                Segment { address: segment.address(), offset, size, executable }
            })
            .collect();
        Ok(Self { bytes, file, segments })
    }

    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The functions that `function_of` gives a `FUNCTION_*` of the wire, by their symbols' names.
    pub fn functions(&self, programs: &'static [Program], function_of: impl Fn(&str) -> Option<u32>) -> Vec<Point> {
        let symbols = self
            .file
            .symbols()
            .take(SYMBOLS_MAX)
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition());
        let points = symbols.filter_map(|symbol| {
            let name = symbol.name().ok()?;
            self.point(programs, function_of(name)?, symbol.address(), name)
        });
        once_each(points.collect())
    }

    /// The point of a function at an address; nothing when no code lies there.
    pub fn point(&self, programs: &'static [Program], function: u32, address: u64, symbol: &str) -> Option<Point> {
        let offset = file_offset(address, &self.segments)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let to = from.saturating_add(prologue::BYTES).min(self.bytes.len());
        let code = self.bytes[from..to].to_vec();
        let Place { at: quickest, is_emulated, why } = prologue::quickest(&code);
        Some(Point { programs, function, offset, quickest, is_emulated, why, code, symbol: symbol.to_owned() })
    }
}

/// Identical functions may have been folded into one: one probe there, or the kernel would count the call twice.
pub(super) fn once_each(mut points: Vec<Point>) -> Vec<Point> {
    points.sort_by_key(|point| point.offset);
    points.dedup_by_key(|point| point.offset);
    points
}

/// Where in the file the code at `address` lies.
pub(super) fn file_offset(address: u64, segments: &[Segment]) -> Option<u64> {
    let segment = segments
        .iter()
        .find(|segment| segment.executable && address >= segment.address && address - segment.address < segment.size)?;
    segment.offset.checked_add(address - segment.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_file_offsets_and_only_in_executable_segments() {
        let code = Segment { address: 0x2c_1dcc, offset: 0x2c_0dcc, size: 0x45_1e04, executable: true };
        let rodata = Segment { address: 0, offset: 0, size: 0x2c_0dcc, executable: false };
        assert_eq!(file_offset(0x31_b360, &[rodata, code]), Some(0x31_a360));
        assert_eq!(file_offset(0x1000, &[rodata, code]), None);
    }

    #[test]
    fn folded_functions_are_one_point() {
        let point = |offset, symbol: &str| Point { offset, symbol: symbol.to_owned(), ..Point::default() };
        let points = once_each(vec![point(32, "encode"), point(16, "other"), point(32, "encode_batch")]);
        assert_eq!(points, [point(16, "other"), point(32, "encode")]);
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        assert!(Code::parse(b"").is_err());
        assert!(Code::parse(b"\x7fELF, but not for long").is_err());
    }

    #[test]
    fn the_functions_of_this_very_binary_are_found_by_name() {
        let bytes = std::fs::read("/proc/self/exe").expect("the test's own binary");
        let code = Code::parse(&bytes).expect("an ELF file");
        let found = code.functions(crate::attach::family::ENTERED, |symbol| {
            symbol.contains("the_functions_of_this_very_binary").then_some(7)
        });
        assert!(!found.is_empty() && found.iter().all(|point| point.function == 7 && point.offset > 0));
    }
}
