use super::*;

fn alloc(memory: &mut Memory, address: u64, bytes: u64, caller: u64) {
    let before = memory.device.0.get(&address).map_or(0, |block| block.bytes);
    let live = memory.held(MemoryOf::Device).live - before + bytes;
    memory.called(&CallKind::Alloc { address, bytes, live }, caller);
}

fn free(memory: &mut Memory, address: u64) {
    let bytes = memory.device.0.get(&address).map_or(0, |block| block.bytes);
    let live = memory.held(MemoryOf::Device).live - bytes;
    memory.called(&CallKind::Free { address, bytes, live }, 0);
}

fn device(memory: &Memory) -> (u64, u64) {
    let MemoryHeld { live, peak } = memory.held(MemoryOf::Device);
    (live, peak)
}

fn libraries(memory: &Memory) -> Vec<(String, u64)> {
    memory.by_library().into_iter().map(|(library, (live, _))| (library.to_string(), live)).collect()
}

#[test]
fn what_is_held_and_was_held_at_most() {
    // 100 at 1 · 50 at 2 · 1 is freed · 9, of before the attach, is freed · 30 at 2 again, its free was lost
    let mut memory = Memory::default();
    alloc(&mut memory, 1, 100, 7);
    alloc(&mut memory, 2, 50, 7);
    free(&mut memory, 1);
    free(&mut memory, 9);
    assert_eq!(device(&memory), (50, 150));
    alloc(&mut memory, 2, 30, 7);
    assert_eq!(device(&memory), (30, 150));
    // The host's is another heap: the same address is another block.
    memory.called(&CallKind::HostAlloc { address: 2, bytes: 8 }, 7);
    free(&mut memory, 2);
    assert_eq!((memory.held(MemoryOf::Host).live, device(&memory).0), (8, 0));
    memory.called(&CallKind::HostFree { address: 2 }, 7);
    assert_eq!(memory.held(MemoryOf::Host), MemoryHeld { live: 0, peak: 8 });
}

#[test]
fn bytes_are_the_library_s_that_asked_for_them_whoever_frees_them() {
    // a: 100 · b: 50 · a is named · b frees a's
    let mut memory = Memory::default();
    alloc(&mut memory, 1, 100, 0xa);
    alloc(&mut memory, 2, 50, 0xb);
    assert_eq!(libraries(&memory), [("unknown".to_owned(), 150)]);
    memory.lies_in(0xa, &Arc::from("liba.so"));
    assert_eq!(libraries(&memory), [("liba.so".to_owned(), 100), ("unknown".to_owned(), 50)]);
    free(&mut memory, 1);
    assert_eq!(libraries(&memory), [("liba.so".to_owned(), 0), ("unknown".to_owned(), 50)]);
}

#[test]
fn places_beyond_the_bound_have_no_library_and_lose_no_byte() {
    let mut memory = Memory::default();
    for caller in 1..=MAX_CALLERS as u64 + 10 {
        alloc(&mut memory, caller, 1, caller);
        memory.lies_in(caller, &Arc::from("liba.so"));
    }
    assert_eq!(memory.callers.len(), MAX_CALLERS + 1);
    let (known, unknown) = (MAX_CALLERS as u64, 10);
    assert_eq!(libraries(&memory), [("liba.so".to_owned(), known), ("unknown".to_owned(), unknown)]);
}

/// Looks at a window's end, after what happens in it.
fn windows(memory: &mut Memory, number: &mut u64, count: u32, each: impl Fn(&mut Memory, u64)) -> Vec<Growing> {
    let mut growing = Vec::new();
    for _ in 0..count {
        *number += 1;
        each(memory, *number);
        growing.extend(memory.grows(*number * WINDOW));
    }
    growing
}

#[test]
fn a_library_that_allocates_on_and_frees_nothing_grows() {
    // windows │+10│+10│+10│+10│+10│+10│ grows │+10│ not told again │ frees 1 │ does not
    let mut memory = Memory::default();
    memory.grows(0);
    let mut number = 0;
    let rises = |memory: &mut Memory, number: u64| alloc(memory, number, 10, 0xa);
    assert_eq!(windows(&mut memory, &mut number, WINDOWS - 1, rises), []);
    assert!(!memory.is_growing());
    let growing = windows(&mut memory, &mut number, 2, rises);
    let [Growing { live: 60, by: 60, .. }] = growing[..] else { panic!("{growing:?}") };
    assert!(memory.is_growing());
    let frees = |memory: &mut Memory, number: u64| {
        rises(memory, number);
        rises(memory, number + 1000);
        free(memory, number);
    };
    assert_eq!(windows(&mut memory, &mut number, 2 * WINDOWS, frees), [], "it frees");
    assert!(!memory.is_growing());
}

#[test]
fn a_library_that_stands_still_for_a_window_does_not_grow() {
    // │+10│ … │+10│ nothing │+10│ …
    let mut memory = Memory::default();
    memory.grows(0);
    let rises = |memory: &mut Memory, number: u64| {
        if !number.is_multiple_of(u64::from(WINDOWS)) {
            alloc(memory, number, 10, 0xa);
        }
    };
    assert_eq!(windows(&mut memory, &mut 0, 5 * WINDOWS, rises), []);
}

#[test]
fn the_first_libraries_have_names_and_the_rest_is_other() {
    let mut of = EngineMemory::default();
    let names = (0..MAX_LIBRARIES + 2).map(|number| Arc::from(format!("lib{number}.so")));
    let told: Vec<Arc<str>> = names.map(|library| of.told_as(&library)).collect();
    assert_eq!((&*told[0], &*told[MAX_LIBRARIES], &*told[MAX_LIBRARIES + 1]), ("lib0.so", OTHER, OTHER));
    assert_eq!(&*of.told_as(&Arc::from(UNKNOWN)), UNKNOWN);
    // 5 of nobody · of lib0
    let mut tell = |library: &str| {
        let news = of.tell(BTreeMap::from([(Arc::from(library), 5)]));
        news.into_iter().map(|(library, live)| (library.to_string(), live)).collect::<Vec<_>>()
    };
    assert_eq!(tell(UNKNOWN), [(UNKNOWN.to_owned(), 5)]);
    assert_eq!(tell("lib0.so"), [("lib0.so".to_owned(), 5), (UNKNOWN.to_owned(), 0)]);
    assert_eq!(tell("lib0.so"), [], "no news");
}

#[test]
fn a_peak_that_no_record_told_is_known() {
    // 100 · (150 and the frees are lost) · 50, with the peak that was kept
    let mut memory = Memory::default();
    memory.holds(100, 0);
    assert_eq!(device(&memory), (100, 100));
    memory.holds(50, 150);
    assert_eq!(device(&memory), (50, 150));
    memory.holds(60, 0);
    assert_eq!(device(&memory), (60, 150));
}

#[test]
fn memory_of_which_records_were_lost_is_nobody_s() {
    // a: 100 · (a free of 40 is lost: 60 are held) · b: 5
    let mut memory = Memory::default();
    alloc(&mut memory, 1, 40, 0xa);
    alloc(&mut memory, 2, 60, 0xa);
    memory.lies_in(0xa, &Arc::from("liba.so"));
    memory.lost();
    memory.holds(60, 0);
    alloc(&mut memory, 3, 5, 0xb);
    memory.lies_in(0xb, &Arc::from("libb.so"));
    let expected = [("liba.so", 0), ("libb.so", 5), ("unknown", 60)];
    assert_eq!(libraries(&memory), expected.map(|(library, live)| (library.to_owned(), live)));
}
