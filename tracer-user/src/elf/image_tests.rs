use super::*;

/// A file of program headers and what they are over, at its end.
fn file(machine: u16, headers: &[(u32, u32, u64, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; FILE_HEADER + headers.len() * PROGRAM_HEADER as usize];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[16..18].copy_from_slice(&elf::ET_DYN.0.to_le_bytes());
    bytes[18..20].copy_from_slice(&machine.to_le_bytes());
    bytes[32..40].copy_from_slice(&(FILE_HEADER as u64).to_le_bytes());
    bytes[54..56].copy_from_slice(&(PROGRAM_HEADER as u16).to_le_bytes());
    bytes[56..58].copy_from_slice(&(headers.len() as u16).to_le_bytes());
    for (number, (kind, flags, address, contents)) in headers.iter().enumerate() {
        let (at, offset) = (FILE_HEADER + number * PROGRAM_HEADER as usize, bytes.len() as u64);
        bytes[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&flags.to_le_bytes());
        for (place, value) in [(8, offset), (16, *address), (32, contents.len() as u64), (40, contents.len() as u64)] {
            bytes[at + place..at + place + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes.extend(*contents);
    }
    bytes
}

const X86: u16 = elf::EM_X86_64.0;
const LOAD: u32 = elf::PT_LOAD.0;
const CODE: u32 = elf::PF_X.0 | elf::PF_R.0;
const DATA: u32 = elf::PF_W.0 | elf::PF_R.0;

#[test]
fn what_is_no_elf_file_for_64_bits_is_refused() {
    let mut narrow = file(X86, &[]);
    narrow[4] = 1;
    let mut other_order = file(X86, &[]);
    other_order[5] = 2;
    for (bytes, is_elf) in
        [(&b""[..], false), (b"\x7fELF", false), (&[0; 64], false), (&narrow, true), (&other_order, true)]
    {
        let error = Image::read(bytes).unwrap_err();
        assert!(
            if is_elf { matches!(error, ElfError::NotElf64) } else { matches!(error, ElfError::NotElf) },
            "{error}"
        );
    }
    let mut cut = file(X86, &[(LOAD, CODE, 0, b"")]);
    cut.truncate(FILE_HEADER + 10);
    assert!(matches!(Image::read(cut.as_slice()), Err(ElfError::Damaged { .. })));
}

#[test]
fn addresses_lead_to_bytes_of_their_segment_alone() {
    let pointer = 0x1002_u64.to_le_bytes();
    let bytes = file(X86, &[(LOAD, CODE, 0x1000, b"\x90\x90text\0"), (LOAD, DATA, 0x2000, &pointer)]);
    let image = Image::read(bytes.as_slice()).unwrap();
    assert_eq!((image.machine(), image.is_fixed()), (Machine::X86_64, false));
    assert!(image.starts(0x1002, b"text\0") && !image.starts(0x1003, b"text\0"));
    assert_eq!((image.pointer(0x2000), image.pointer(0x2001), image.pointer(0x3000)), (Some(0x1002), None, None));
    assert!(image.is_code(0x1000) && !image.is_code(0x0fff) && !image.is_code(0x1007) && !image.is_code(0x2000));
    assert_eq!(image.code().len(), 1);
    assert_eq!(image.data().map(|segment| segment.address).collect::<Vec<_>>(), [0x2000]);
}

#[test]
fn segments_that_lie_about_their_size_or_wrap_around_are_cut() {
    for (address, size) in [(0, u64::MAX), (u64::MAX, 8), (u64::MAX - 3, u64::MAX), (0x1000, 1 << 40)] {
        let mut bytes = file(X86, &[(LOAD, CODE, address, b"12345678")]);
        bytes[FILE_HEADER + 32..FILE_HEADER + 40].copy_from_slice(&size.to_le_bytes());
        let image = Image::read(bytes.as_slice()).unwrap();
        assert!(image.code().iter().all(|code| code.size <= 8), "{address:#x} {size:#x}");
        for at in [0, address, address.wrapping_add(7), address.wrapping_sub(1), u64::MAX] {
            let _ = (image.pointer(at), image.word(at), image.starts(at, b"1"), image.is_code(at));
        }
    }
}

#[test]
fn code_that_is_told_of_twice_is_looked_at_once() {
    let code = [0x90; 32];
    let bytes = file(X86, &[(LOAD, CODE, 0x1000, &code), (LOAD, CODE, 0x1010, &code), (LOAD, CODE, 0x1000, &code)]);
    let stretches = Image::read(bytes.as_slice()).unwrap().code();
    let ranges: Vec<_> = stretches.iter().map(|code| (code.address, code.size)).collect();
    assert_eq!(ranges, [(0x1000, 32), (0x1020, 16)]);
}

#[test]
fn a_build_id_is_found_among_other_notes() {
    let note = |name: &[u8], kind: u32, contents: &[u8]| {
        let mut bytes = Vec::new();
        for number in [name.len() as u32, contents.len() as u32, kind] {
            bytes.extend(number.to_le_bytes());
        }
        for part in [name, contents] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    };
    let notes = [note(b"GNU\0", 1, &[0; 16]), note(b"Go\0", 3, b"no"), note(b"GNU\0", 3, &[7; 20])].concat();
    let id = |notes: &[u8]| build_id(file(X86, &[(elf::PT_NOTE.0, 4, 0, notes)]).as_slice());
    assert_eq!(id(&notes), Some(vec![7; 20]));
    assert_eq!(id(&notes[..notes.len() - 8]), None, "cut");
    assert_eq!(id(&note(b"GNU\0", 3, &[7; 2])), None, "too short to be one");
    assert_eq!(id(&[0xFF; 40]), None);
    assert_eq!(build_id(&b"no ELF"[..]), None);
}
