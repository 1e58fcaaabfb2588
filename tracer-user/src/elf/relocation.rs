//! What the loader writes into a file's memory.
//!
//! Enters: the relocation tables that the dynamic section names. Leaves: the address at a place, and the slots of named functions.
//! Invariant: places are sorted, a place relocated twice keeps the last. Packed relative relocations (`DT_RELR`) need no table here: their
//! addresses stand in the file. Relocations behind the first [`RELOCATIONS_MAX`] are left out.

use std::io;

use object::elf;

use super::image::{Dynamic, Machine};
use super::source::{Source, Window, u16_in, u32_in, u64_in};

/// cuDNN has 389,000, an interpreter 70,000. At 24 bytes each.
const RELOCATIONS_MAX: u64 = 2_000_000;
/// Bytes of an entry of a relocation table, and of a symbol table (gABI).
const ENTRY: u64 = 24;
pub(super) const SYMBOL: u64 = 24;

/// Numbers of the kinds of relocations that hold addresses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kinds {
    relative: u32,
    absolute: u32,
    slots: [u32; 2],
}

impl Kinds {
    pub(super) fn of(machine: Machine) -> Option<Self> {
        match machine {
            Machine::X86_64 => Some(Self {
                relative: elf::R_X86_64_RELATIVE.0,
                absolute: elf::R_X86_64_64.0,
                slots: [elf::R_X86_64_GLOB_DAT.0, elf::R_X86_64_JUMP_SLOT.0],
            }),
            Machine::Aarch64 => Some(Self {
                relative: elf::R_AARCH64_RELATIVE.0,
                absolute: elf::R_AARCH64_ABS64.0,
                slots: [elf::R_AARCH64_GLOB_DAT.0, elf::R_AARCH64_JUMP_SLOT.0],
            }),
            Machine::Other(_) => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Relocation {
    at: u64,
    /// The address itself, or, with a symbol, what is added to it.
    value: u64,
    /// Index in the table of symbols; 0 without one, as there.
    symbol: u32,
    is_slot: bool,
}

/// What the loader does with a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing: what the file holds stays.
    AsInFile,
    /// It writes an address of this file's.
    Address(u64),
    /// It writes what another file decides.
    Elsewhere,
}

#[derive(Debug, Default)]
pub(super) struct Relocations {
    sorted: Vec<Relocation>,
    /// Addresses of the symbols that they name and this file has, by index.
    symbols: Vec<(u32, u64)>,
}

impl Relocations {
    pub(super) fn read<S: Source + ?Sized>(source: &S, dynamic: &Dynamic, kinds: Kinds) -> io::Result<Self> {
        let mut sorted = Vec::new();
        let mut left = RELOCATIONS_MAX;
        for (table, size) in [dynamic.relocations, dynamic.jump_slots] {
            let count = (size.min(source.size().saturating_sub(table)) / ENTRY).min(left);
            left -= count;
            let mut window = Window::new(source);
            for number in 0..count {
                let entry = window.bytes(table + number * ENTRY, ENTRY as usize)?;
                // r_info is the symbol's index above the kind (gABI, ELF64_R_SYM).
                let (kind, symbol) = (u32_in(entry, 8), u32_in(entry, 12));
                let (is_slot, is_relative) = (kinds.slots.contains(&kind), kind == kinds.relative);
                if !(is_slot || is_relative || kind == kinds.absolute) {
                    continue;
                }
                let symbol = if is_relative { 0 } else { symbol };
                let value = if is_slot { 0 } else { u64_in(entry, 16) };
                sorted.push(Relocation { at: u64_in(entry, 0), value, symbol, is_slot });
            }
        }
        sorted.sort_by_key(|relocation: &Relocation| relocation.at);
        let symbols = addresses(source, dynamic, &sorted)?;
        Ok(Self { sorted, symbols })
    }

    pub(super) fn at(&self, at: u64) -> Place {
        let behind = self.sorted.partition_point(|relocation| relocation.at <= at);
        let Some(relocation) = self.sorted[..behind].last().filter(|relocation| relocation.at == at) else {
            return Place::AsInFile;
        };
        if relocation.symbol == 0 {
            return Place::Address(relocation.value);
        }
        let known = self.symbols.binary_search_by_key(&relocation.symbol, |&(index, _)| index).ok();
        known.map_or(Place::Elsewhere, |known| Place::Address(self.symbols[known].1.wrapping_add(relocation.value)))
    }

    pub(super) fn slots<S: Source + ?Sized>(
        &self,
        source: &S,
        dynamic: &Dynamic,
        names: &[&str],
    ) -> io::Result<Vec<(u64, usize)>> {
        let longest = names.iter().map(|name| name.len()).max().unwrap_or_default();
        let slots = self.sorted.iter().filter(|relocation| relocation.is_slot && relocation.symbol != 0);
        let mut symbols: Vec<u32> = slots.clone().map(|relocation| relocation.symbol).collect();
        symbols.sort_unstable();
        symbols.dedup();
        let mut window = Window::new(source);
        // Sorted by where the name is, so that the names are read once through.
        let mut by_name: Vec<(u64, u32)> = Vec::with_capacity(symbols.len());
        for symbol in symbols {
            let Some(entry) = symbol_entry(&mut window, dynamic, symbol)? else { continue };
            by_name.push((u64::from(u32_in(entry, 0)), symbol));
        }
        by_name.sort_unstable();
        let mut wanted: Vec<(u32, usize)> = Vec::new();
        for (name, symbol) in by_name.into_iter().filter(|(name, _)| *name < dynamic.names.1) {
            let text = window.text(dynamic.names.0.saturating_add(name), longest + 1)?;
            if let Some(index) = names.iter().position(|name| text == Some(name.as_bytes())) {
                wanted.push((symbol, index));
            }
        }
        wanted.sort_unstable();
        let index_of = |symbol: u32| {
            let known = wanted.binary_search_by_key(&symbol, |&(symbol, _)| symbol).ok()?;
            Some(wanted[known].1)
        };
        Ok(slots.filter_map(|slot| Some((slot.at, index_of(slot.symbol)?))).collect())
    }
}

/// Addresses of the symbols that relocations name, of those that the file itself has, by index.
fn addresses<S: Source + ?Sized>(
    source: &S,
    dynamic: &Dynamic,
    relocations: &[Relocation],
) -> io::Result<Vec<(u32, u64)>> {
    let mut symbols: Vec<u32> = relocations.iter().map(|relocation| relocation.symbol).filter(|&s| s != 0).collect();
    symbols.sort_unstable();
    symbols.dedup();
    let mut window = Window::new(source);
    let mut found = Vec::new();
    for symbol in symbols {
        let Some(entry) = symbol_entry(&mut window, dynamic, symbol)? else { continue };
        let (section, address) = (u16_in(entry, 6), u64_in(entry, 8));
        if section != elf::SHN_UNDEF.0 {
            found.push((symbol, address));
        }
    }
    Ok(found)
}

/// A symbol's entry; nothing when it lies behind the file.
fn symbol_entry<'w, S: Source + ?Sized>(
    window: &'w mut Window<'_, S>,
    dynamic: &Dynamic,
    symbol: u32,
) -> io::Result<Option<&'w [u8]>> {
    let at = dynamic.symbols.saturating_add(u64::from(symbol) * SYMBOL);
    let entry = window.bytes(at, SYMBOL as usize)?;
    Ok(Some(entry).filter(|entry| entry.len() == SYMBOL as usize))
}
