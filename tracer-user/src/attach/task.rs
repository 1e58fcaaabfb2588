//! Where `pid` and `tgid` lie in this kernel's `task_struct`, from `/sys/kernel/btf/vmlinux`.
//!
//! Enters: BTF bytes (Documentation/bpf/btf.rst). Leaves: byte offsets, or nothing when the bytes do not say. Every read is
//! bounds-checked: a kernel's BTF is trusted no more than any other file. Rust's BPF objects carry no CO-RE relocations, so
//! the two offsets go into the object as globals.

/// Offsets into `struct task_struct`, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskOffsets {
    pub pid: u32,
    pub tgid: u32,
}

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

/// Finds the offsets in little-endian BTF.
pub fn task_offsets(btf: &[u8]) -> Option<TaskOffsets> {
    if u16_at(btf, 0)? != MAGIC {
        return None;
    }
    let body = btf.get(u32_at(btf, 4)? as usize..)?;
    let section = |at: usize| -> Option<&[u8]> {
        let start = u32_at(btf, at)? as usize;
        body.get(start..start.checked_add(u32_at(btf, at + 4)? as usize)?)
    };
    let (types, strings) = (section(8)?, section(16)?);
    let is = |offset: u32, name: &[u8]| {
        strings.get(offset as usize..).is_some_and(|rest| rest.starts_with(name) && rest.get(name.len()) == Some(&0))
    };
    let mut at = 0;
    while at + 12 <= types.len() {
        let (name, info) = (u32_at(types, at)?, u32_at(types, at + 4)?);
        let (kind, vlen, members_are_bitfields) = (info >> 24 & 0x1f, (info & 0xffff) as usize, info >> 31 == 1);
        if kind == KIND_STRUCT && is(name, b"task_struct") {
            let (mut pid, mut tgid) = (None, None);
            for member in 0..vlen {
                let member = at + 12 + member * 12;
                let (name, offset) = (u32_at(types, member)?, u32_at(types, member + 8)?);
                // With bitfields in the struct the upper 8 bits are the field's width.
                let bytes = if members_are_bitfields { offset & 0x00ff_ffff } else { offset } / 8;
                if is(name, b"pid") {
                    pid = Some(bytes);
                } else if is(name, b"tgid") {
                    tgid = Some(bytes);
                }
            }
            return Some(TaskOffsets { pid: pid?, tgid: tgid? });
        }
        at += 12 + trailer(kind, vlen)?;
    }
    None
}

/// The offsets of the running kernel.
pub fn running_kernel() -> Option<TaskOffsets> {
    task_offsets(&std::fs::read("/sys/kernel/btf/vmlinux").ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF with an int, a pointer and the given struct members.
    fn btf(members: &[(&str, u32)]) -> Vec<u8> {
        let mut strings = b"\0int\0task_struct\0".to_vec();
        let mut types = Vec::new();
        let mut push = |words: &[u32]| types.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        push(&[1, 1 << 24, 4, 0x2000]); // INT "int"
        push(&[0, 2 << 24, 1]); // PTR
        push(&[5, 4 << 24 | 1 << 31 | members.len() as u32, 4096]);
        for (name, offset) in members {
            push(&[strings.len() as u32, 1, (offset * 8) | (3 << 24)]);
            strings.extend(name.as_bytes());
            strings.push(0);
        }
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn offsets_are_read_past_other_types_and_members() {
        let bytes = btf(&[("state", 24), ("pid", 1384), ("tgid", 1388), ("pids", 2000)]);
        assert_eq!(task_offsets(&bytes), Some(TaskOffsets { pid: 1384, tgid: 1388 }));
    }

    #[test]
    fn a_struct_without_the_members_gives_nothing() {
        assert_eq!(task_offsets(&btf(&[("pid", 8)])), None);
    }

    #[test]
    fn every_truncation_gives_nothing_or_the_truth() {
        let whole = btf(&[("pid", 8), ("tgid", 12)]);
        for len in 0..whole.len() {
            assert!(task_offsets(&whole[..len]).is_none_or(|found| found == TaskOffsets { pid: 8, tgid: 12 }));
        }
    }
}
