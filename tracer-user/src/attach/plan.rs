//! Which files are probed for which processes. Pure: mappings in, one [`Library`] an inode out, whoever maps it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::proc::text::Mapping;

/// The identity that a uprobe attaches to: device (major, minor) and inode.
pub type FileId = ((u32, u32), u64);

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

impl Library {
    pub fn id(&self) -> FileId {
        (self.device, self.inode)
    }
}

/// The libraries that `is_wanted` among the mappings of the processes, one an inode.
pub fn libraries<'a>(
    processes: impl IntoIterator<Item = (u32, &'a [Mapping])>,
    is_wanted: impl Fn(&Path) -> bool,
) -> Vec<Library> {
    let mut found: BTreeMap<FileId, Library> = BTreeMap::new();
    for (process, mappings) in processes {
        for mapping in mappings.iter().filter(|mapping| mapping.executable && is_wanted(&mapping.path)) {
            let library = found.entry((mapping.device, mapping.inode)).or_insert_with(|| Library {
                device: mapping.device,
                inode: mapping.inode,
                path: mapping.path.clone(),
                through: (process, mapping.start, mapping.end),
                processes: Vec::new(),
            });
            if library.processes.last() != Some(&process) {
                library.processes.push(process);
            }
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::kind::is_tokenizer;

    fn mapping(start: u64, inode: u64, path: &str) -> Mapping {
        Mapping {
            writable: false,
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
        let one = [mapping(0x1000, 7, "/a/tokenizers.abi3.so"), mapping(0x9000, 7, "/a/tokenizers.abi3.so")];
        let two = [mapping(0x2000, 7, "/b/tokenizers.abi3.so"), mapping(0x3000, 8, "/usr/lib/libssl.so.3")];
        let libraries = libraries([(10, &one[..]), (11, &two[..])], is_tokenizer);
        assert_eq!(libraries.len(), 1);
        assert_eq!(libraries[0].processes, [10, 11]);
        assert_eq!(libraries[0].through, (10, 0x1000, 0x2000));
    }

    #[test]
    fn two_inodes_of_one_name_are_two_libraries() {
        let one = [Mapping { deleted: true, ..mapping(0x1000, 7, "/x/tokenizers.abi3.so") }];
        let two = [mapping(0x1000, 8, "/x/tokenizers.abi3.so")];
        assert_eq!(libraries([(1, &one[..]), (2, &two[..])], is_tokenizer).len(), 2);
    }

    #[test]
    fn data_mappings_and_other_libraries_are_left_out() {
        let data = Mapping { executable: false, ..mapping(0x1000, 7, "/x/tokenizers.abi3.so") };
        let other = mapping(0x2000, 8, "/x/tokenizers.py");
        assert!(libraries([(1, &[data, other][..])], is_tokenizer).is_empty());
    }
}
