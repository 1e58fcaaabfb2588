use super::*;

/// The 64 bytes of an ELF file's header, and nothing behind it.
fn header(machine: u16) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18..20].copy_from_slice(&machine.to_le_bytes());
    bytes
}

#[test]
fn other_machines_are_refused_by_name() {
    // EM_AARCH64 and EM_RISCV.
    for (machine, name) in [(183, "aarch64"), (243, "another machine")] {
        let error = scan(header(machine).as_slice()).unwrap_err();
        assert!(matches!(error, ScanError::Machine(what) if what == name), "{error}");
        assert!(error.to_string().contains("x86-64 only"), "{error}");
    }
}

#[test]
fn a_file_without_code_registers_nothing() {
    let table = scan(header(62).as_slice()).unwrap();
    assert!(table.is_empty() && table.found_by == FoundBy::Nothing);
}

#[test]
fn names_are_single_words_that_print() {
    for name in ["_Z10add_kernelPfPKfi", "triton_poi_fused_add_0", "kernel$1", "größe"] {
        assert!(is_name(name.as_bytes()), "{name}");
    }
    for name in [&b""[..], b"two words", b"tab\t", b"\x1b[2J", b"\xff\xfe", "a\u{202e}b".as_bytes(), b"\x7f"] {
        assert!(!is_name(name), "{name:?}");
    }
}

#[test]
fn a_stub_may_be_called_at_its_landing_mark_or_at_its_jump() {
    let entries = |before: &[u8]| {
        let to = To::Slot(0);
        let call = Call { at: 0x100, end: 0x106, is_jump: true, to, before };
        let mut entries: Vec<u64> = stub_entries(&call).into_iter().flatten().collect();
        entries.sort_unstable();
        entries
    };
    assert_eq!(entries(&[]), [0x100]);
    assert_eq!(entries(&[0x90, 0xF3, 0x0F, 0x1E, 0xFA]), [0xFC, 0x100]);
    assert_eq!(entries(&[0xF3, 0x0F, 0x1E, 0xFA, 0xF2]), [0xFB, 0xFF, 0x100]);
    assert_eq!(entries(&[0xF3, 0x0F, 0x1E, 0xFA, 0x41, 0xBB, 1, 0, 0, 0]), [0xF6, 0xFA, 0x100]);
}
