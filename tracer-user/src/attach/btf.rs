//! Where the members of kernel structs lie, from `/sys/kernel/btf/vmlinux`.
//!
//! Enters: BTF bytes (Documentation/bpf/btf.rst) and a list of members. Leaves: a byte offset each, or nothing where the bytes
//! do not say. Every read is bounds-checked: a kernel's BTF is trusted no more than any other file. Rust's BPF objects carry no
//! CO-RE relocations, so the offsets go into the object as globals.

use tracer_ebpf::wire::target::{
    OFFSET_FDT_FD, OFFSET_FDT_MAX, OFFSET_FILES_FDT, OFFSET_SIGNAL_LIVE, OFFSET_TASK_FILES, OFFSET_TASK_PID,
    OFFSET_TASK_SIGNAL, OFFSET_TASK_TGID, OFFSETS_LEN,
};

/// What the programs read: struct, member, index of the offset.
const MEMBERS: [(&str, &str, usize); OFFSETS_LEN] = [
    ("task_struct", "pid", OFFSET_TASK_PID),
    ("task_struct", "tgid", OFFSET_TASK_TGID),
    ("task_struct", "files", OFFSET_TASK_FILES),
    ("task_struct", "signal", OFFSET_TASK_SIGNAL),
    ("signal_struct", "live", OFFSET_SIGNAL_LIVE),
    ("files_struct", "fdt", OFFSET_FILES_FDT),
    ("fdtable", "fd", OFFSET_FDT_FD),
    ("fdtable", "max_fds", OFFSET_FDT_MAX),
];

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;

/// Bytes that follow a type of this kind, besides its 12-byte head; `None` for a kind this reader does not know.
fn trailer(kind: u32, vlen: usize) -> Option<usize> {
    Some(match kind {
        1 | 14 | 17 => 4,                            // INT, VAR, DECL_TAG
        2 | 7 | 8 | 9 | 10 | 11 | 12 | 16 | 18 => 0, // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        3 => 12,                                     // ARRAY
        4 | 5 | 15 | 19 => vlen.checked_mul(12)?,    // STRUCT, UNION, DATASEC, ENUM64
        6 | 13 => vlen.checked_mul(8)?,              // ENUM, FUNC_PROTO
        _ => return None,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Finds the offsets of `members` (struct, member) in little-endian BTF.
pub fn offsets(btf: &[u8], members: &[(&str, &str)]) -> Vec<Option<u32>> {
    let mut found = vec![None; members.len()];
    // What was found before the bytes went wrong is still true.
    let _ = search(btf, members, &mut found);
    found
}

fn search(btf: &[u8], members: &[(&str, &str)], found: &mut [Option<u32>]) -> Option<()> {
    if u16_at(btf, 0)? != MAGIC {
        return None;
    }
    let body = btf.get(u32_at(btf, 4)? as usize..)?;
    let section = |at: usize| -> Option<&[u8]> {
        let start = u32_at(btf, at)? as usize;
        body.get(start..start.checked_add(u32_at(btf, at + 4)? as usize)?)
    };
    let (types, strings) = (section(8)?, section(16)?);
    let is = |offset: u32, name: &str| {
        strings
            .get(offset as usize..)
            .is_some_and(|rest| rest.starts_with(name.as_bytes()) && rest.get(name.len()) == Some(&0))
    };
    let mut at = 0;
    while at + 12 <= types.len() && found.iter().any(Option::is_none) {
        let (name, info) = (u32_at(types, at)?, u32_at(types, at + 4)?);
        let (kind, vlen, has_bitfields) = (info >> 24 & 0x1f, (info & 0xffff) as usize, info >> 31 == 1);
        if kind == KIND_STRUCT && members.iter().any(|(of, _)| is(name, of)) {
            for member in 0..vlen {
                let member = at + 12 + member * 12;
                let (member, offset) = (u32_at(types, member)?, u32_at(types, member + 8)?);
                // With bitfields in the struct the upper 8 bits are the field's width.
                let bytes = if has_bitfields { offset & 0x00ff_ffff } else { offset } / 8;
                for ((of, wanted), found) in members.iter().zip(found.iter_mut()) {
                    if found.is_none() && is(name, of) && is(member, wanted) {
                        *found = Some(bytes);
                    }
                }
            }
        }
        at += 12 + trailer(kind, vlen)?;
    }
    Some(())
}

/// The offsets of the running kernel, by `OFFSET_*`; all 0 when it does not give them all.
pub(super) fn running_kernel() -> Option<[u32; OFFSETS_LEN]> {
    let btf = std::fs::read("/sys/kernel/btf/vmlinux").ok()?;
    let found = offsets(&btf, &MEMBERS.map(|(of, member, _)| (of, member)));
    let mut table = [0; OFFSETS_LEN];
    for ((.., index), offset) in MEMBERS.iter().zip(found) {
        table[*index] = offset?;
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: [(&str, &str); 3] = [("task_struct", "pid"), ("task_struct", "tgid"), ("fdtable", "fd")];

    /// BTF with an int, a pointer and structs.
    fn btf(structs: &[(&str, &[(&str, u32)])]) -> Vec<u8> {
        let mut strings = b"\0int\0".to_vec();
        let mut types: Vec<u32> = vec![1, 1 << 24, 4, 0x2000, 0, 2 << 24, 1];
        let mut string = |text: &str| {
            let at = strings.len() as u32;
            strings.extend(text.as_bytes());
            strings.push(0);
            at
        };
        for (name, members) in structs {
            types.extend([string(name), 4 << 24 | 1 << 31 | members.len() as u32, 4096]);
            for (name, offset) in *members {
                types.extend([string(name), 1, (offset * 8) | (3 << 24)]);
            }
        }
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend([1, 0]);
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_le_bytes()).collect();
        for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    fn kernel() -> Vec<u8> {
        btf(&[
            ("fd", &[("pid", 4)]),
            ("task_struct", &[("state", 24), ("pid", 1384), ("tgid", 1388), ("pids", 2000)]),
            ("fdtable", &[("max_fds", 0), ("fd", 8)]),
        ])
    }

    #[test]
    fn offsets_are_read_past_other_types_and_members() {
        assert_eq!(offsets(&kernel(), &WANTED), [Some(1384), Some(1388), Some(8)]);
    }

    #[test]
    fn a_member_that_is_not_there_has_none() {
        assert_eq!(offsets(&btf(&[("task_struct", &[("pid", 8)])]), &WANTED), [Some(8), None, None]);
    }

    #[test]
    fn every_truncation_gives_nothing_or_the_truth() {
        let whole = kernel();
        let truth = offsets(&whole, &WANTED);
        for len in 0..whole.len() {
            let found = offsets(&whole[..len], &WANTED);
            assert!(found.iter().zip(&truth).all(|(found, truth)| found.is_none() || found == truth));
        }
    }
}
