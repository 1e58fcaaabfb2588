//! Uprobes of a program at many places by one link, where the kernel has such links.
//!
//! Enters: the object's bytes, the loaded maps, a program and its places in a file. Leaves: one link for them all. A perf event a
//! probe, as aya attaches them, is taken back one after the other under one lock, and each waits until nobody can be in it: 65 take 7 s on
//! an idle machine, minutes on a busy one, and whoever attaches meanwhile waits as well (measured). One link waits once. It needs programs
//! loaded for it, which aya cannot do: the object is prepared a second time with aya's own parts.
//! Refused: kernels before 6.6, and those whose links filter threads where they should filter processes (before 6.10).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya::Ebpf;
use aya::maps::Map;
use aya_obj::generated::{
    BPF_F_UPROBE_MULTI_RETURN, bpf_attach_type, bpf_attr,
    bpf_attr__bindgen_ty_14__bindgen_ty_3__bindgen_ty_7 as Uprobes, bpf_cmd, bpf_insn, bpf_prog_type,
};
use aya_obj::{Object, ProgramSection};

/// Where a program is attached in a file.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Offsets in the file.
    pub offsets: Vec<u64>,
    pub cookies: Vec<u64>,
    /// When the function returns there.
    pub at_return: bool,
}

/// Programs that can be attached so.
pub(super) struct Multi {
    programs: HashMap<String, Prepared>,
    /// The instructions name these by their numbers.
    _maps: Vec<OwnedFd>,
    loaded: BTreeMap<&'static str, OwnedFd>,
    /// Whether the kernel has such links; not known before the first program is loaded.
    is_supported: Option<bool>,
}

struct Prepared {
    license: CString,
    instructions: Vec<bpf_insn>,
}

impl Multi {
    /// Prepares the uprobe programs of an object whose maps `ebpf` has. `None`: something about it is not as aya has it.
    pub(super) fn prepare(object: &[u8], ebpf: &Ebpf) -> Option<Self> {
        let mut object = Object::parse(object).ok()?;
        let mut maps = Vec::new();
        let mut named = Vec::new();
        for (name, map) in object.maps.drain() {
            let fd = descriptor(ebpf.map(&name)?)?.try_clone_to_owned().ok()?;
            named.push((name, fd.as_raw_fd(), map));
            maps.push(fd);
        }
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps(named.iter().map(|(name, fd, map)| (name.as_str(), *fd, map)), &sections).ok()?;
        object.relocate_calls(&sections).ok()?;
        object.sanitize_functions(aya::features());
        let is_uprobe = |section: &ProgramSection| {
            matches!(section, ProgramSection::UProbe { .. } | ProgramSection::URetProbe { .. })
        };
        let uprobes = object.programs.iter().filter(|(_, program)| is_uprobe(&program.section));
        let programs = uprobes.filter_map(|(name, program)| {
            let instructions = object.functions.get(&program.function_key())?.instructions.clone();
            Some((name.clone(), Prepared { license: program.license.clone(), instructions }))
        });
        Some(Self { programs: programs.collect(), _maps: maps, loaded: BTreeMap::new(), is_supported: None })
    }

    /// Loads a program. An error is one of any kind: aya's way of loading it says which.
    fn load(&mut self, name: &'static str) -> io::Result<BorrowedFd<'_>> {
        if !self.loaded.contains_key(name) {
            let program = self.programs.get(name).ok_or(io::ErrorKind::NotFound)?;
            let fd = load(name, program)?;
            self.loaded.insert(name, fd);
        }
        self.loaded.get(name).map(OwnedFd::as_fd).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Loads a program and says whether it can be attached by one link.
    pub(super) fn takes(&mut self, name: &'static str) -> bool {
        let known = self.is_supported;
        let Ok(program) = self.load(name) else { return false };
        let supported = known.unwrap_or_else(|| is_supported(program));
        self.is_supported = Some(supported);
        supported
    }

    /// Attaches a program to all `places` of the file at `path`, in one process or in all; to all of them or none.
    pub(super) fn attach(
        &mut self,
        name: &'static str,
        path: &Path,
        places: &Places,
        process: Option<u32>,
    ) -> io::Result<OwnedFd> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        link(self.load(name)?, &path, places, process.unwrap_or(0))
    }
}

fn descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    let (Map::Array(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)
    | Map::PerCpuHashMap(data)
    | Map::PerfEventArray(data)
    | Map::ProgramArray(data)
    | Map::RingBuf(data)) = map
    else {
        return None;
    };
    Some(data.fd().as_fd())
}

/// Whether the kernel has links that filter processes, as libbpf finds out: a file that cannot be probed is EBADF, and of a process -1 an
/// older kernel says that as well, where a newer one says EINVAL.
fn is_supported(program: BorrowedFd<'_>) -> bool {
    let places = Places { offsets: vec![0], cookies: vec![0], at_return: false };
    let errno = |process| link(program, c"/", &places, process).err().and_then(|error| error.raw_os_error());
    errno(0) == Some(libc::EBADF) && errno(u32::MAX) == Some(libc::EINVAL)
}

fn load(name: &str, program: &Prepared) -> io::Result<OwnedFd> {
    // SAFETY: all bits zero are a valid value of a union of integers.
    let mut attr = unsafe { zeroed::<bpf_attr>() };
    // SAFETY: this command reads this member.
    let of = unsafe { &mut attr.__bindgen_anon_3 };
    of.prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32;
    of.expected_attach_type = bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
    of.insns = program.instructions.as_ptr() as u64;
    of.insn_cnt = u32::try_from(program.instructions.len()).map_err(io::Error::other)?;
    of.license = program.license.as_ptr() as u64;
    // One less: its end is a zero.
    let most = of.prog_name.len() - 1;
    for (to, from) in of.prog_name[..most].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    bpf(bpf_cmd::BPF_PROG_LOAD, &attr)
}

fn link(program: BorrowedFd<'_>, path: &std::ffi::CStr, places: &Places, process: u32) -> io::Result<OwnedFd> {
    // SAFETY: as above.
    let mut attr = unsafe { zeroed::<bpf_attr>() };
    // SAFETY: this command reads this member.
    let of = unsafe { &mut attr.link_create };
    of.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    of.attach_type = bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
    // Field by field: a whole value brings bytes of its own behind the last field, and the kernel refuses what is not zero there (measured:
    // EINVAL, or not, as the stack has it).
    // SAFETY: this attach type reads this member.
    let uprobes: &mut Uprobes = unsafe { &mut of.__bindgen_anon_3.uprobe_multi };
    uprobes.path = path.as_ptr() as u64;
    uprobes.offsets = places.offsets.as_ptr() as u64;
    uprobes.cookies = places.cookies.as_ptr() as u64;
    uprobes.cnt = u32::try_from(places.offsets.len().min(places.cookies.len())).map_err(io::Error::other)?;
    uprobes.flags = if places.at_return { BPF_F_UPROBE_MULTI_RETURN } else { 0 };
    uprobes.pid = process;
    bpf(bpf_cmd::BPF_LINK_CREATE, &attr)
}

/// A command whose answer is a descriptor.
fn bpf(command: bpf_cmd, attr: &bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as are said, and what they point to, which outlives the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command as u32, std::ptr::from_ref(attr), size_of::<bpf_attr>()) };
    let fd = i32::try_from(answer).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
