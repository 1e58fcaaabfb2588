//! What to probe in the libraries that the targets map. Pure: facts in, probe points out.
//!
//! Enters: mappings and symbols that [`super::library`] read. Leaves: one [`Library`] an inode, whoever maps it, and the
//! [`Point`]s in it. Symbols are matched by pattern, because Rust's mangled names carry a hash that changes with every build.

use std::collections::BTreeMap;

use tracer_ebpf::wire::tokenizer::{FUNCTION_DECODE_STEP, FUNCTION_ENCODE};

/// An executable file mapping of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Address range, as `/proc/<pid>/map_files` names it.
    pub start: u64,
    pub end: u64,
    /// `major:minor` of the device, as `/proc/<pid>/maps` prints it.
    pub device: (u32, u32),
    pub inode: u64,
    /// As seen in the process's mount namespace.
    pub path: String,
}

/// One library file, however many processes map it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    pub device: (u32, u32),
    pub inode: u64,
    pub path: String,
    /// A process that maps it, and where: the way to reach the exact inode.
    pub through: (u32, u64, u64),
    /// Every process that maps it.
    pub processes: Vec<u32>,
}

/// A function to probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// A `FUNCTION_*` of the wire; the probe's cookie.
    pub function: u32,
    /// Offset in the file.
    pub offset: u64,
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

/// Whether a mapped path is Hugging Face's tokenizer library (`tokenizers.abi3.so`, or one built for one Python).
pub fn is_tokenizer(path: &str) -> bool {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let name = path.rsplit('/').next().unwrap_or(path);
    name.starts_with("tokenizers.") && name.rsplit_once('.').is_some_and(|(_, extension)| extension == "so")
}

/// The tokenizer libraries among the mappings of the processes, one an inode.
pub fn tokenizers(processes: &[(u32, Vec<Mapping>)]) -> Vec<Library> {
    let mut found: BTreeMap<((u32, u32), u64), Library> = BTreeMap::new();
    for (process, mappings) in processes {
        for mapping in mappings.iter().filter(|mapping| is_tokenizer(&mapping.path)) {
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

/// Which function of interest a mangled symbol is. PyO3 wraps a method `m` in `__pymethod_m__`.
pub fn function_of(symbol: &str) -> Option<u32> {
    // Legacy mangling ends in `17h<16 hex>E`, v0 in the name.
    let name = match symbol.rsplit_once("17h") {
        Some((name, hash)) if hash.len() == 17 && hash.ends_with('E') => name,
        _ => symbol,
    };
    let is = |class: &str, method: &str| {
        name.contains(class)
            && name.strip_suffix("__").is_some_and(|name| name.ends_with(&format!("__pymethod_{method}")))
    };
    if ["encode", "encode_batch", "encode_batch_fast"].iter().any(|method| is("PyTokenizer", method)) {
        Some(FUNCTION_ENCODE)
    } else if is("PyDecodeStream", "step") {
        Some(FUNCTION_DECODE_STEP)
    } else {
        None
    }
}

/// The points at which to probe, from a file's function symbols (name, address) and segments.
pub fn points<'a>(symbols: impl Iterator<Item = (&'a str, u64)>, segments: &[Segment]) -> Vec<Point> {
    let mut points: Vec<Point> = symbols
        .filter_map(|(symbol, address)| {
            let function = function_of(symbol)?;
            let segment = segments.iter().find(|segment| {
                segment.executable && address >= segment.address && address - segment.address < segment.size
            })?;
            let offset = segment.offset.checked_add(address - segment.address)?;
            Some(Point { function, offset, symbol: symbol.to_owned() })
        })
        .collect();
    // Identical functions may have been folded into one: one probe there, or the kernel would count the call twice.
    points.sort_by_key(|point| point.offset);
    points.dedup_by_key(|point| point.offset);
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENCODE: &str = "_RNvMsE_NtCs84oBVal8Hga_10tokenizers9tokenizerNtB5_11PyTokenizer19___pymethod_encode__";
    const STEP: &str = "_RNvMs2y_NtCs84oBVal8Hga_10tokenizers8decodersNtB6_14PyDecodeStream17___pymethod_step__";

    fn mapping(start: u64, inode: u64, path: &str) -> Mapping {
        Mapping { start, end: start + 0x1000, device: (8, 1), inode, path: path.to_owned() }
    }

    #[test]
    fn a_library_that_several_processes_map_is_planned_once() {
        let libraries = tokenizers(&[
            (10, vec![mapping(0x1000, 7, "/a/tokenizers.abi3.so"), mapping(0x9000, 7, "/a/tokenizers.abi3.so")]),
            (11, vec![mapping(0x2000, 7, "/b/tokenizers.abi3.so"), mapping(0x3000, 8, "/usr/lib/libssl.so.3")]),
        ]);
        assert_eq!(libraries.len(), 1);
        assert_eq!(libraries[0].processes, [10, 11]);
        assert_eq!(libraries[0].through, (10, 0x1000, 0x2000));
    }

    #[test]
    fn two_inodes_of_one_name_are_two_libraries() {
        let one = mapping(0x1000, 7, "/x/tokenizers.abi3.so (deleted)");
        let two = mapping(0x1000, 8, "/x/tokenizers.abi3.so");
        assert_eq!(tokenizers(&[(1, vec![one]), (2, vec![two])]).len(), 2);
    }

    #[test]
    fn functions_are_told_by_class_and_method_whatever_the_mangling() {
        assert_eq!(function_of(ENCODE), Some(FUNCTION_ENCODE));
        assert_eq!(
            function_of(&ENCODE.replace("19___pymethod_encode", "30___pymethod_encode_batch_fast")),
            Some(FUNCTION_ENCODE)
        );
        assert_eq!(function_of(STEP), Some(FUNCTION_DECODE_STEP));
        let legacy = "_ZN10tokenizers9tokenizer11PyTokenizer19___pymethod_encode__17h0123456789abcdefE";
        assert_eq!(function_of(legacy), Some(FUNCTION_ENCODE));
        assert_eq!(function_of(&ENCODE.replace("encode__", "encode_special_tokens__")), None);
        assert_eq!(function_of(&ENCODE.replace("encode__", "decode__")), None);
        assert_eq!(function_of(&STEP.replace("PyDecodeStream", "PyTokenizer")), None);
    }

    #[test]
    fn addresses_become_file_offsets_and_only_in_executable_segments() {
        let code = Segment { address: 0x2c_1dcc, offset: 0x2c_0dcc, size: 0x45_1e04, executable: true };
        let rodata = Segment { address: 0, offset: 0, size: 0x2c_0dcc, executable: false };
        let found = points([(ENCODE, 0x31_b360), (STEP, 0x1000), ("_ZN3foo", 0x31_b400)].into_iter(), &[rodata, code]);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].function, found[0].offset), (FUNCTION_ENCODE, 0x31_a360));
    }
}
