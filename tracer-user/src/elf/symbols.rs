//! Functions by name, in the tables that debuggers and linkers use.
//!
//! Enters: names. Leaves: the addresses of functions of these names in this file. A table of names may take a hundred megabytes (libtorch),
//! so the names are searched in it as in a text, and then the symbols that stand for them: neither is held.

use std::io;

use object::elf;

use super::image::{Image, Section};
use super::relocation::SYMBOL;
use super::source::{Source, Window, u16_in, u32_in, u64_in};

/// Symbols that are looked at, in all tables. libtorch has 236,000, TensorFlow two million.
const SYMBOLS_MAX: u64 = 16_000_000;
/// Bytes of names that are searched, a table.
const NAMES_MAX: u64 = 1 << 30;
/// Places of names, and functions, that are kept; a linker writes a name once.
const FOUND_MAX: usize = 1 << 12;
/// Bytes of them that are searched at once.
const CHUNK: usize = 1 << 20;

impl<S: Source + ?Sized> Image<'_, S> {
    /// `(address, index in names)` of the functions that this file has under these names.
    pub fn functions(&self, names: &[&str]) -> io::Result<Vec<(u64, usize)>> {
        let mut found = Vec::new();
        let mut left = SYMBOLS_MAX;
        let is_table = |section: &&Section| [elf::SHT_SYMTAB.0, elf::SHT_DYNSYM.0].contains(&section.kind);
        for table in self.sections.iter().filter(is_table).take(2) {
            let Some(texts) = self.sections.get(table.link as usize) else { continue };
            let places = self.places(texts, names)?;
            if places.is_empty() {
                continue;
            }
            let count = (table.size.min(self.source.size().saturating_sub(table.offset)) / SYMBOL).min(left);
            left -= count;
            let mut window = Window::new(self.source);
            for number in 0..count {
                let entry = window.bytes(table.offset + number * SYMBOL, SYMBOL as usize)?;
                let name = u64::from(u32_in(entry, 0));
                let Ok(place) = places.binary_search_by_key(&name, |&(place, _)| place) else { continue };
                let address = u64_in(entry, 8);
                if u16_in(entry, 6) != elf::SHN_UNDEF.0 && self.is_code(address) && found.len() < FOUND_MAX {
                    found.push((address, places[place].1));
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Where in a table of texts these names stand, also as the end of a longer one: linkers share the bytes.
    fn places(&self, texts: &Section, names: &[&str]) -> io::Result<Vec<(u64, usize)>> {
        let finders: Vec<_> = names.iter().map(|name| memchr::memmem::Finder::new(name.as_bytes())).collect();
        let longest = names.iter().map(|name| name.len()).max().unwrap_or_default();
        let size = texts.size.min(self.source.size().saturating_sub(texts.offset)).min(NAMES_MAX);
        let mut window = Window::new(self.source);
        let (mut places, mut done) = (Vec::new(), 0);
        while done < size {
            // With the start of the next chunk: a name may lie across.
            let len = usize::try_from(size - done).unwrap_or(CHUNK).min(CHUNK + longest);
            let bytes = window.bytes(texts.offset + done, len)?;
            for (index, finder) in finders.iter().enumerate() {
                let ends = |at: &usize| bytes.get(at + names[index].len()) == Some(&0);
                let all = finder.find_iter(bytes).filter(ends).map(|at| (done + at as u64, index));
                places.extend(all.take(FOUND_MAX.saturating_sub(places.len())));
            }
            done += CHUNK as u64;
        }
        places.sort_unstable();
        places.dedup();
        Ok(places)
    }
}
