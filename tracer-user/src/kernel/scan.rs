//! A library's table, from its file.
//!
//! Enters: a [`Source`]. Leaves: a [`Table`]. The compiler makes three kinds of calls:
//!
//! - `__cudaRegisterFunction(module, host function, name, name, -1, …)`, once a kernel, when the library is loaded;
//! - `__cudaGetKernel(&handle, host function)`, in each host function (CUDA 12.8 and later);
//! - `cudaLaunchKernel(host function, …)` or `__cudaLaunchKernel(handle, …)`, where it is launched.
//!
//! Their targets are imports, or, where the runtime is linked in, functions with a symbol, or, stripped, the one that is called as the first
//! of these is ([`super::shape`]). Of a host function that is registered twice the registration that stands last in the code is kept.
//! Refused: what is no ELF file, and other machines than x86-64.

use std::io;

use crate::elf::image::Code;
use crate::elf::source::Window;
use crate::elf::{ElfError, Image, Machine, Source};

use super::calls::{self, Call, To};
use super::operand::{Argument, FIRST, FOURTH, Operand, Reader, SECOND, THIRD, Value};
use super::shape;
use super::table::{FoundBy, Launched, Table};

/// Longest device name, bytes; the longest seen has 11,000.
pub const NAME_MAX: usize = 64 << 10;
/// Bytes of names in a table; libtorch has 6 MB.
const NAMES_MAX: usize = 32 << 20;
/// Stubs that lead to the runtime; a library has one for each of its functions.
const STUBS_MAX: usize = 1 << 16;
/// Registrations, handles and launches each; libtorch has 45,000.
const SITES_MAX: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("{0}")]
    Elf(#[from] ElfError),
    #[error("it is for {0}, and scans read x86-64 only")]
    Machine(&'static str),
}

impl From<io::Error> for ScanError {
    fn from(error: io::Error) -> Self {
        Self::Elf(error.into())
    }
}

/// What a call says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Callee {
    Register,
    GetKernel,
    /// The argument is what is launched.
    Launch(Argument),
}

/// Functions of the runtime, by name. `_ptsz`: compiled with a default stream a thread.
const CALLEES: [(&str, Callee); 10] = [
    ("__cudaRegisterFunction", Callee::Register),
    ("__cudaGetKernel", Callee::GetKernel),
    ("__cudaLaunchKernel", Callee::Launch(FIRST)),
    ("__cudaLaunchKernel_ptsz", Callee::Launch(FIRST)),
    ("cudaLaunchKernel", Callee::Launch(FIRST)),
    ("cudaLaunchKernel_ptsz", Callee::Launch(FIRST)),
    ("cudaLaunchCooperativeKernel", Callee::Launch(FIRST)),
    ("cudaLaunchCooperativeKernel_ptsz", Callee::Launch(FIRST)),
    ("cudaLaunchKernelExC", Callee::Launch(SECOND)),
    ("cudaLaunchKernelExC_ptsz", Callee::Launch(SECOND)),
];

/// Where calls of interest lead.
#[derive(Debug, Default)]
struct Targets {
    /// Both by address.
    code: Vec<(u64, Callee)>,
    slots: Vec<(u64, Callee)>,
}

impl Targets {
    fn of(&self, to: To) -> Option<Callee> {
        let (list, address) = match to {
            To::Code(address) => (&self.code, address),
            To::Slot(address) => (&self.slots, address),
        };
        // Nearly every call is none of these.
        let (lowest, highest) = (list.first()?.0, list.last()?.0);
        if address < lowest || address > highest {
            return None;
        }
        let at = list.binary_search_by_key(&address, |&(address, _)| address).ok()?;
        Some(list[at].1)
    }

    /// Whether it is the jump of a stub, which passes on what its callers say.
    fn is_stub(&self, call: &Call<'_>) -> bool {
        call.is_jump && self.code.binary_search_by_key(&call.at, |&(address, _)| address).is_ok()
    }

    fn has(&self, callee: Callee) -> bool {
        self.code.iter().chain(&self.slots).any(|&(_, known)| known == callee)
    }
}

/// Reads a library's table.
pub fn scan<S: Source + ?Sized>(source: &S) -> Result<Table, ScanError> {
    let image = Image::read(source)?;
    match image.machine() {
        Machine::X86_64 => {}
        Machine::Aarch64 => return Err(ScanError::Machine("aarch64")),
        Machine::Other(_) => return Err(ScanError::Machine("another machine")),
    }
    let code = image.code();
    let Some((targets, found_by)) = targets(&image, &code)? else { return Ok(Table::default()) };
    let mut sites = Sites::new(&image);
    calls::each_call(&image, &code, |call| {
        if let Some(callee) = targets.of(call.to).filter(|_| !targets.is_stub(&call)) {
            sites.take(callee, &call);
        }
    })?;
    sites.table(found_by)
}

/// What to look for; nothing when the library registers nothing.
fn targets<S: Source + ?Sized>(image: &Image<'_, S>, code: &[Code]) -> Result<Option<(Targets, FoundBy)>, ScanError> {
    let names = CALLEES.map(|(name, _)| name);
    let slots = image.slots(&names)?.into_iter().map(|(slot, index)| (slot, CALLEES[index].1)).collect();
    let mut targets = Targets { slots, code: Vec::new() };
    targets.slots.sort_by_key(|&(slot, _)| slot);
    if targets.has(Callee::Register) {
        targets.code = stubs(image, code, &targets)?;
        return Ok(Some((targets, FoundBy::Import)));
    }
    // Registered kernels lie in such a section (NVIDIA's fatbinary.h); a file without section headers may have them anywhere.
    if image.has_section(|name| name.eq_ignore_ascii_case(".nvFatBinSegment")) == Some(false) {
        return Ok(None);
    }
    let functions = image.functions(&names)?.into_iter().map(|(address, index)| (address, CALLEES[index].1));
    targets.code.extend(functions);
    targets.code.sort_by_key(|&(address, _)| address);
    if targets.has(Callee::Register) {
        return Ok(Some((targets, FoundBy::Symbol)));
    }
    let Some(register) = shape::register(image, code)? else { return Ok(None) };
    targets.code.push((register, Callee::Register));
    targets.code.sort_by_key(|&(address, _)| address);
    Ok(Some((targets, FoundBy::Shape)))
}

/// The stubs through which imports are called, as linkers write them: a jump to what the slot holds, with or without a landing mark, a
/// prefix, or the slot's number before it.
fn stubs<S: Source + ?Sized>(
    image: &Image<'_, S>,
    code: &[Code],
    targets: &Targets,
) -> Result<Vec<(u64, Callee)>, ScanError> {
    let mut found = Vec::new();
    if targets.slots.is_empty() {
        return Ok(found);
    }
    let named = image.stubs();
    for stretches in [named.as_slice(), code] {
        calls::each_call(image, stretches, |call| {
            if let Some(callee) = targets.of(call.to).filter(|_| call.is_jump && found.len() < STUBS_MAX) {
                found.extend(stub_entries(&call).into_iter().flatten().map(|entry| (entry, callee)));
            }
        })?;
        if !found.is_empty() {
            break;
        }
    }
    found.sort_by_key(|&(address, _)| address);
    found.dedup_by_key(|&mut (address, _)| address);
    Ok(found)
}

/// Where a stub may be called whose jump this is.
fn stub_entries(jump: &Call<'_>) -> [Option<u64>; 3] {
    /// endbr64
    const LANDING: [u8; 4] = [0xF3, 0x0F, 0x1E, 0xFA];
    let before = jump.before;
    let prefixed = match before {
        // bnd; mold: mov r11d, number
        [start @ .., 0xF2] | [start @ .., 0x41, 0xBB, _, _, _, _] => Some(start),
        _ => None,
    };
    let landing = prefixed.unwrap_or(before).strip_suffix(&LANDING);
    let at = |start: &[u8]| jump.at - (before.len() - start.len()) as u64;
    [Some(jump.at), prefixed.map(at), landing.map(at)]
}

/// What calls said, as they come.
#[derive(Debug)]
struct Sites<'i, 's, S: ?Sized> {
    image: &'i Image<'s, S>,
    reader: Reader,
    /// (host function, address of its name)
    registered: Vec<(u64, u64)>,
    handles: Vec<(u64, u64)>,
    launches: Vec<(u64, Launched)>,
    unread: u64,
}

impl<'i, 's, S: Source + ?Sized> Sites<'i, 's, S> {
    fn new(image: &'i Image<'s, S>) -> Self {
        Self {
            image,
            reader: Reader::new(image.is_fixed()),
            registered: Vec::new(),
            handles: Vec::new(),
            launches: Vec::new(),
            unread: 0,
        }
    }

    fn take(&mut self, callee: Callee, call: &Call<'_>) {
        match callee {
            Callee::Register => match self.registration(call) {
                Some(pair) if self.registered.len() < SITES_MAX => self.registered.push(pair),
                _ => self.unread += 1,
            },
            Callee::GetKernel => {
                if let Some(pair) = self.handle(call).filter(|_| self.handles.len() < SITES_MAX) {
                    self.handles.push(pair);
                }
            }
            // A jump returns elsewhere.
            Callee::Launch(argument) if !call.is_jump && self.launches.len() < SITES_MAX => {
                let launched = self.launched(call, argument);
                self.launches.extend(launched.map(|launched| (call.end, launched)));
            }
            Callee::Launch(_) => {}
        }
    }

    fn read(&mut self, call: &Call<'_>, argument: Argument) -> Option<Operand> {
        self.reader.read(call.before, call.at, argument)
    }

    /// The name is given twice; compilers copy one register to the other, so one of them is loaded.
    fn registration(&mut self, call: &Call<'_>) -> Option<(u64, u64)> {
        let host = self.host(call, SECOND)?;
        let names = [self.read(call, THIRD), self.read(call, FOURTH)].into_iter().flatten();
        let loaded = names.filter_map(|name| Some((name.distance, self.address(name)?)));
        let (_, name) = loaded.min_by_key(|&(distance, _)| distance)?;
        Some((host, name))
    }

    fn handle(&mut self, call: &Call<'_>) -> Option<(u64, u64)> {
        let host = self.host(call, SECOND)?;
        let variable = self.read(call, FIRST)?;
        Some((self.address(variable)?, host))
    }

    fn launched(&mut self, call: &Call<'_>, argument: Argument) -> Option<Launched> {
        match self.read(call, argument)?.value {
            Value::Address(address) => Some(address).filter(|&host| self.image.is_code(host)).map(Launched::Host),
            // In a table of the linker's it is the host function; else a variable, which is empty in the file.
            Value::At(at) => match self.image.pointer(at) {
                Some(host) if self.image.is_code(host) => Some(Launched::Host(host)),
                _ => Some(Launched::Variable(at)),
            },
        }
    }

    /// A register that holds the address of a function.
    fn host(&mut self, call: &Call<'_>, argument: Argument) -> Option<u64> {
        let operand = self.read(call, argument)?;
        self.address(operand).filter(|&host| self.image.is_code(host))
    }

    fn address(&self, operand: Operand) -> Option<u64> {
        match operand.value {
            Value::Address(address) => Some(address),
            Value::At(at) => self.image.pointer(at),
        }
    }

    /// Reads the names, in the order in which they lie in the file.
    fn table(self, found_by: FoundBy) -> Result<Table, ScanError> {
        let Self { image, mut registered, handles, launches, mut unread, .. } = self;
        // The last one first, which is then the one that is kept.
        registered.reverse();
        registered.sort_by_key(|&(host, _)| host);
        registered.dedup_by_key(|&mut (host, _)| host);
        registered.sort_by_key(|&(_, name)| name);
        let mut window = Window::new(image.source());
        let (mut kernels, mut bytes) = (Vec::with_capacity(registered.len()), 0);
        for (host, name) in registered {
            let Some(offset) = image.offset(name) else {
                unread += 1;
                continue;
            };
            match window.text(offset, NAME_MAX)? {
                Some(text) if is_name(text) && bytes + text.len() <= NAMES_MAX => {
                    bytes += text.len();
                    kernels.push((host, text.to_vec()));
                }
                _ => unread += 1,
            }
        }
        let mut table = Table::new(kernels, handles, launches, found_by);
        table.unread = unread;
        Ok(table)
    }
}

/// Whether a compiler may have written it as a function's name: one word, nothing that does not print.
pub(super) fn is_name(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|&byte| byte > b' ' && byte != 0x7F)
        && std::str::from_utf8(text).is_ok_and(|text| !text.chars().any(crate::sanitise::is_unsafe))
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
