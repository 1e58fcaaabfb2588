//! What to probe in the libraries that the targets map. Pure: facts in, probe points out.
//!
//! Enters: mappings and symbols that [`super::library`] read. Leaves: one [`Library`] an inode, whoever maps it, and the
//! [`Point`]s in it. Symbols are matched by pattern, because Rust's mangled names carry a hash that changes with every build.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tracer_ebpf::wire::call::{FUNCTION_DECODE, FUNCTION_ENCODE};

use crate::discover::elf::is_encode;
use crate::discover::kind::Kind;
use crate::discover::text::Mapping;

/// One library file, however many processes map it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    pub device: (u32, u32),
    pub inode: u64,
    pub path: PathBuf,
    /// A process that maps it, and where: the way to reach the exact inode.
    pub through: (u32, u64, u64),
    /// Every process that maps it.
    pub processes: Vec<u32>,
}

/// A function to probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// A `FUNCTION_*` of the wire.
    pub function: u32,
    /// Offset of its entry in the file.
    pub offset: u64,
    /// How far behind it lies the instruction on which a probe of the entry costs least, bytes.
    pub quickest: u64,
    pub symbol: String,
}

/// A loadable segment of an ELF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub address: u64,
    pub offset: u64,
    pub size: u64,
    pub executable: bool,
}

/// The libraries of a kind among the mappings of the processes, one an inode.
pub fn libraries(processes: &[(u32, Vec<Mapping>)], kind: Kind) -> Vec<Library> {
    let mut found: BTreeMap<((u32, u32), u64), Library> = BTreeMap::new();
    for (process, mappings) in processes {
        for mapping in mappings.iter().filter(|mapping| mapping.executable && Kind::of(&mapping.path) == Some(kind)) {
            let library = found.entry((mapping.device, mapping.inode)).or_insert_with(|| Library {
                device: mapping.device,
                inode: mapping.inode,
                path: mapping.path.clone(),
                through: (*process, mapping.start, mapping.end),
                processes: Vec::new(),
            });
            if library.processes.last() != Some(process) {
                library.processes.push(*process);
            }
        }
    }
    found.into_values().collect()
}

/// The points at which to probe, from a file's function symbols (name, address) and segments.
pub fn points<'a>(kind: Kind, symbols: impl Iterator<Item = (&'a str, u64)>, segments: &[Segment]) -> Vec<Point> {
    let mut points: Vec<Point> = symbols
        .filter_map(|(symbol, address)| {
            let function = match kind {
                Kind::Tokenizer if is_encode(symbol) => FUNCTION_ENCODE,
                // `JSONDecoder_decode` is another one; `.cold` is no entry.
                Kind::Messages if symbol == "Decoder_decode" => FUNCTION_DECODE,
                _ => return None,
            };
            Some(Point { function, offset: file_offset(address, segments)?, quickest: 0, symbol: symbol.to_owned() })
        })
        .collect();
    // Identical functions may have been folded into one: one probe there, or the kernel would count the call twice.
    points.sort_by_key(|point| point.offset);
    points.dedup_by_key(|point| point.offset);
    points
}

/// Where in the file the code at `address` lies.
pub fn file_offset(address: u64, segments: &[Segment]) -> Option<u64> {
    let segment = segments
        .iter()
        .find(|segment| segment.executable && address >= segment.address && address - segment.address < segment.size)?;
    segment.offset.checked_add(address - segment.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENCODE: &str = "_RNvMsE_NtCs84oBVal8Hga_10tokenizers9tokenizerNtB5_11PyTokenizer19___pymethod_encode__";
    const STEP: &str = "_RNvMs2y_NtCs84oBVal8Hga_10tokenizers8decodersNtB6_14PyDecodeStream17___pymethod_step__";

    fn mapping(start: u64, inode: u64, path: &str) -> Mapping {
        Mapping {
            start,
            end: start + 0x1000,
            executable: true,
            offset: 0,
            device: (8, 1),
            inode,
            path: PathBuf::from(path),
            deleted: false,
        }
    }

    #[test]
    fn a_library_that_several_processes_map_is_planned_once() {
        let libraries = libraries(
            &[
                (10, vec![mapping(0x1000, 7, "/a/tokenizers.abi3.so"), mapping(0x9000, 7, "/a/tokenizers.abi3.so")]),
                (11, vec![mapping(0x2000, 7, "/b/tokenizers.abi3.so"), mapping(0x3000, 8, "/usr/lib/libssl.so.3")]),
            ],
            Kind::Tokenizer,
        );
        assert_eq!(libraries.len(), 1);
        assert_eq!(libraries[0].processes, [10, 11]);
        assert_eq!(libraries[0].through, (10, 0x1000, 0x2000));
    }

    #[test]
    fn two_inodes_of_one_name_are_two_libraries() {
        let one = Mapping { deleted: true, ..mapping(0x1000, 7, "/x/tokenizers.abi3.so") };
        let two = mapping(0x1000, 8, "/x/tokenizers.abi3.so");
        assert_eq!(libraries(&[(1, vec![one]), (2, vec![two])], Kind::Tokenizer).len(), 2);
    }

    #[test]
    fn data_mappings_and_other_libraries_are_left_out() {
        let data = Mapping { executable: false, ..mapping(0x1000, 7, "/x/tokenizers.abi3.so") };
        let other = mapping(0x2000, 8, "/x/tokenizers.py");
        assert!(libraries(&[(1, vec![data, other])], Kind::Tokenizer).is_empty());
    }

    #[test]
    fn addresses_become_file_offsets_and_only_in_executable_segments() {
        let code = Segment { address: 0x2c_1dcc, offset: 0x2c_0dcc, size: 0x45_1e04, executable: true };
        let rodata = Segment { address: 0, offset: 0, size: 0x2c_0dcc, executable: false };
        let found = points(
            Kind::Tokenizer,
            [(ENCODE, 0x31_b360), (STEP, 0x1000), ("_ZN3foo", 0x31_b400)].into_iter(),
            &[rodata, code],
        );
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].function, found[0].offset), (FUNCTION_ENCODE, 0x31_a360));
    }

    #[test]
    fn the_decoder_of_messages_is_told_from_that_of_json() {
        let code = Segment { address: 0x1000, offset: 0x1000, size: 0x1000, executable: true };
        let symbols = [("JSONDecoder_decode", 0x1100), ("Decoder_decode", 0x1200), ("Decoder_decode.cold", 0x1300)];
        let found = points(Kind::Messages, symbols.into_iter(), &[code]);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].function, found[0].offset), (FUNCTION_DECODE, 0x1200));
    }
}
