//! What a library says about its kernels, by address.
//!
//! Enters: pairs that [`super::scan`] read. Leaves: look-ups by link-time address. Invariant: every list is sorted and holds an address
//! once. A table may come from a file on disk, so a look-up never trusts an index in it.

use serde::{Deserialize, Serialize};

/// What a launch names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Launched {
    /// The host function itself.
    Host(u64),
    /// The variable that holds the kernel's handle (`__handle`, CUDA 13) or the host function's address.
    Variable(u64),
}

/// How the function that registers kernels was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FoundBy {
    /// The library registers nothing.
    #[default]
    Nothing,
    /// It is another library's, by its name.
    Import,
    /// It is in the file, and has a symbol.
    Symbol,
    /// It is in the file, which is stripped: by how it is called.
    Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    host: u64,
    /// Where its name is in the table's text.
    start: u32,
    len: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    kernels: Vec<Entry>,
    text: String,
    handles: Vec<(u64, u64)>,
    launches: Vec<(u64, Launched)>,
    pub found_by: FoundBy,
    /// Registrations that could not be read.
    pub unread: u64,
}

impl Table {
    /// Of an address that is there twice, the first stays. Names behind the first 4 GiB of text are left out.
    pub(super) fn new(
        kernels: Vec<(u64, Vec<u8>)>,
        handles: Vec<(u64, u64)>,
        launches: Vec<(u64, Launched)>,
        found_by: FoundBy,
    ) -> Self {
        let mut table = Self { found_by, ..Self::default() };
        let mut kernels = kernels;
        kernels.sort_by_key(|&(host, _)| host);
        kernels.dedup_by_key(|&mut (host, _)| host);
        for (host, name) in kernels {
            let (Ok(name), Ok(start)) = (String::from_utf8(name), u32::try_from(table.text.len())) else { continue };
            table.text.push_str(&name);
            table.kernels.push(Entry { host, start, len: name.len() as u32 });
        }
        table.handles = once_each(handles);
        table.launches = once_each(launches);
        table
    }

    /// A table of kernels alone.
    pub fn of_kernels<'n>(kernels: impl IntoIterator<Item = (u64, &'n str)>) -> Self {
        let kernels = kernels.into_iter().map(|(host, name)| (host, name.as_bytes().to_vec()));
        Self::new(kernels.collect(), Vec::new(), Vec::new(), FoundBy::Symbol)
    }

    /// Device names as they were registered, by address of the host function.
    pub fn kernels(&self) -> impl ExactSizeIterator<Item = (u64, &str)> {
        self.kernels.iter().map(|entry| (entry.host, self.text_of(*entry)))
    }

    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }

    /// Variables that hold handles, and the host functions that they stand for.
    pub fn handles(&self) -> &[(u64, u64)] {
        &self.handles
    }

    /// Return addresses of launches, and what they launch.
    pub fn launches(&self) -> &[(u64, Launched)] {
        &self.launches
    }

    /// Name of the kernel that a host function stands for.
    pub fn of_host(&self, host: u64) -> Option<&str> {
        let at = self.kernels.binary_search_by_key(&host, |entry| entry.host).ok()?;
        Some(self.text_of(self.kernels[at])).filter(|name| !name.is_empty())
    }

    /// Name of the kernel whose handle is kept in a variable.
    pub fn of_handle(&self, variable: u64) -> Option<&str> {
        self.of_host(of(&self.handles, variable)?)
    }

    /// Name of the kernel that is launched by the call that returns to an address.
    pub fn of_launch(&self, return_address: u64) -> Option<&str> {
        match of(&self.launches, return_address)? {
            Launched::Host(host) => self.of_host(host),
            Launched::Variable(variable) => self.of_handle(variable),
        }
    }

    fn text_of(&self, entry: Entry) -> &str {
        let (start, len) = (entry.start as usize, entry.len as usize);
        self.text.get(start..start.saturating_add(len)).unwrap_or_default()
    }
}

fn once_each<T: Copy>(mut pairs: Vec<(u64, T)>) -> Vec<(u64, T)> {
    pairs.sort_by_key(|&(address, _)| address);
    pairs.dedup_by_key(|&mut (address, _)| address);
    pairs
}

fn of<T: Copy>(pairs: &[(u64, T)], address: u64) -> Option<T> {
    let at = pairs.binary_search_by_key(&address, |&(address, _)| address).ok()?;
    Some(pairs[at].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_is_named_by_its_host_function_or_by_its_handle() {
        let kernels = vec![(0x20, b"_Z3twov".to_vec()), (0x10, b"one".to_vec())];
        let launches =
            vec![(0x99, Launched::Host(0x10)), (0x88, Launched::Variable(0x500)), (0x77, Launched::Host(0x11))];
        let table = Table::new(kernels, vec![(0x500, 0x20)], launches, FoundBy::Import);
        assert_eq!(table.kernels().collect::<Vec<_>>(), [(0x10, "one"), (0x20, "_Z3twov")]);
        assert_eq!(table.of_launch(0x99), Some("one"));
        assert_eq!(table.of_launch(0x88), Some("_Z3twov"));
        assert_eq!(table.of_handle(0x500), Some("_Z3twov"));
        assert_eq!((table.of_launch(0x77), table.of_launch(0x98), table.of_handle(0)), (None, None, None));
    }

    #[test]
    fn a_host_function_that_is_there_twice_keeps_the_first() {
        let table = Table::new(vec![(1, b"a".to_vec()), (1, b"b".to_vec())], vec![], vec![], FoundBy::Import);
        assert_eq!(table.kernels().collect::<Vec<_>>(), [(1, "a")]);
    }

    #[test]
    fn a_table_with_wild_indices_gives_nothing_and_does_not_panic() {
        let entry = |start, len| Entry { host: 1, start, len };
        for entry in [entry(0, 2), entry(u32::MAX, u32::MAX), entry(1, 1)] {
            let table = Table { kernels: vec![entry], text: "é".into(), ..Table::default() };
            assert_eq!(table.of_host(1).unwrap_or_default(), if entry.len == 2 { "é" } else { "" });
        }
    }
}
