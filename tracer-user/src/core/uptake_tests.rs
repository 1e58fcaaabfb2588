use super::*;
use crate::core::place::TURNS;

const NONE: [u64; 0] = [];
/// Where stacks stand: of the stamp, and of a handler of requests.
const STAMP: u32 = 0x1000;
const HANDLER: u32 = 0x0800;
const OTHER: u32 = 0x1400;

/// Of a message without a stamp of its engine's.
fn message(stamped: bool, firsts: Firsts) -> Message {
    Message { of: None, stamped, firsts }
}

/// The requests alone.
fn keys(taken_up: TakenUp) -> Vec<u64> {
    taken_up.into_iter().flat_map(|(firsts, _)| firsts).collect()
}

/// Probed: a first call was seen.
fn uptake() -> Uptake {
    let mut uptake = Uptake::default();
    assert_eq!(keys(uptake.decodes(1, 1, 0)), NONE);
    uptake.keeps_statistics(1, true);
    uptake
}

#[test]
fn the_first_reading_of_the_clock_after_a_message_was_decoded_stamps_it() {
    // arrives 7, 8 · clock · decodes · clock (7) · clock · decodes · clock (8)
    let mut uptake = uptake();
    uptake.arrived(1, message(true, vec![7]));
    uptake.arrived(1, message(true, vec![8]));
    assert_eq!(keys(uptake.reads_clock(1, 1, 1, STAMP)), NONE, "nothing is decoded");
    assert_eq!(keys(uptake.decodes(1, 1, 0)), [7]);
    assert_eq!(keys(uptake.reads_clock(1, 1, 1, STAMP)), [7]);
    assert_eq!(keys(uptake.reads_clock(1, 1, 1, STAMP)), NONE);
    assert_eq!(keys(uptake.decodes(1, 1, 0)), [8]);
    assert_eq!(keys(uptake.reads_clock(1, 1, 1, STAMP)), [8]);
}

#[test]
fn messages_that_are_decoded_while_others_are_handled_are_stamped_in_order() {
    let mut uptake = uptake();
    for key in [7, 8] {
        uptake.arrived(1, message(true, vec![key]));
        uptake.decodes(1, 1, 0);
    }
    assert_eq!(
        (keys(uptake.reads_clock(1, 1, 1, STAMP)), keys(uptake.reads_clock(1, 1, 1, STAMP))),
        (vec![7], vec![8])
    );
}

#[test]
fn a_message_without_outputs_is_decoded_and_not_stamped() {
    let mut uptake = uptake();
    uptake.arrived(1, message(false, vec![]));
    uptake.arrived(1, message(true, vec![8]));
    assert_eq!(keys(uptake.decodes(1, 1, 0)), NONE);
    assert_eq!(keys(uptake.reads_clock(1, 1, 1, STAMP)), NONE);
    assert_eq!(keys(uptake.decodes(1, 1, 0)), [8]);
}

#[test]
fn another_thread_s_clock_and_another_process_are_none_of_its_business() {
    let mut uptake = uptake();
    uptake.arrived(1, message(true, vec![7]));
    uptake.arrived(2, message(true, vec![9]));
    uptake.decodes(1, 1, 0);
    assert_eq!(keys(uptake.reads_clock(1, 5, 1, STAMP)), NONE);
    assert_eq!(keys(uptake.reads_clock(2, 1, 1, STAMP)), NONE);
    assert_eq!(keys(uptake.decodes(2, 2, 0)), NONE, "it was not known to be probed when 9 arrived");
    assert_eq!(keys(uptake.reads_clock(1, 1, 1, STAMP)), [7]);
}

#[test]
fn what_waited_when_calls_were_lost_is_forgotten() {
    let mut uptake = uptake();
    uptake.arrived(1, message(true, vec![7]));
    uptake.lost();
    uptake.arrived(1, message(true, vec![8]));
    assert_eq!(keys(uptake.decodes(1, 1, 0)), [8]);
}

#[test]
fn a_decoder_that_stops_being_seen_fills_nothing() {
    let mut uptake = uptake();
    for key in 0..100_000 {
        uptake.arrived(1, message(true, vec![key]));
    }
    assert!(uptake.front_ends[&1].waiting.len() <= MAX_WAITING);
}

#[test]
fn a_server_without_statistics_stamps_nothing() {
    // the first outputs come without events ─ decoded ─ a clock that is somebody else's
    let mut uptake = uptake();
    uptake.keeps_statistics(1, false);
    uptake.arrived(1, message(true, vec![7]));
    assert_eq!(keys(uptake.decodes(1, 1, 0)), [7]);
    assert_eq!(keys(uptake.reads_clock(1, 1, 1, STAMP)), NONE);
}

#[test]
fn a_reading_long_after_the_message_is_no_stamp() {
    let mut uptake = uptake();
    for key in [7, 8] {
        uptake.arrived(1, message(true, vec![key]));
    }
    uptake.decodes(1, 1, 0);
    uptake.decodes(1, 1, MAX_AGE);
    assert_eq!(keys(uptake.reads_clock(1, 1, MAX_AGE + 1, STAMP)), [8], "7 was decoded too long ago");
}

#[test]
fn the_place_that_reads_once_a_message_is_the_stamp_s_and_what_came_before_is_put_right() {
    // arrives · decodes · clock (a handler) · clock (the stamp) · clock (statistics, twice), again and again
    let mut uptake = uptake();
    let mut stamps: BTreeMap<u64, EventNanos> = BTreeMap::new();
    let mut note = |taken_up: TakenUp| {
        for (firsts, at) in taken_up {
            stamps.extend(firsts.into_iter().map(|key| (key, at)));
        }
    };
    for key in 0..u64::from(2 * TURNS) {
        let at = key * 1000;
        uptake.arrived(1, message(true, vec![key]));
        note(uptake.decodes(1, 1, at));
        // As often as there are requests: none, one, two …
        for _ in 0..key % 3 {
            note(uptake.reads_clock(1, 1, at + 10, HANDLER));
        }
        note(uptake.reads_clock(1, 1, at + 20, STAMP));
        for _ in 0..2 {
            note(uptake.reads_clock(1, 1, at + 30, HANDLER - 1));
        }
    }
    for (key, at) in stamps {
        assert_eq!(at, key * 1000 + 20, "{key}");
    }
}

#[test]
fn a_place_that_changes_is_learned_anew_and_nothing_between_is_lost() {
    // another place stamps from message 40 on
    let mut uptake = uptake();
    let mut stamps: BTreeMap<u64, EventNanos> = BTreeMap::new();
    for key in 0..80 {
        let at = key * 1000;
        uptake.arrived(1, message(true, vec![key]));
        let place = if key < 40 { STAMP } else { OTHER };
        let mut taken_up = uptake.decodes(1, 1, at);
        for reading in [HANDLER, HANDLER, place] {
            taken_up.extend(uptake.reads_clock(1, 1, at + u64::from(reading), reading));
        }
        stamps.extend(taken_up.into_iter().flat_map(|(firsts, at)| firsts.into_iter().map(move |key| (key, at))));
    }
    for (key, at) in stamps.into_iter().take(72) {
        let place = if key < 40 { STAMP } else { OTHER };
        assert_eq!(at, key * 1000 + u64::from(place), "{key}");
    }
}

#[test]
fn the_interpreter_s_ways_to_call_are_one_place_and_a_backlog_changes_nothing() {
    // 20 messages, each stamped at once │ then three are decoded before three stamps, some by another way
    let mut uptake = uptake();
    let mut stamps: BTreeMap<u64, EventNanos> = BTreeMap::new();
    let mut note = |taken_up: TakenUp| {
        stamps.extend(taken_up.into_iter().flat_map(|(firsts, at)| firsts.into_iter().map(move |key| (key, at))));
    };
    for key in 0..20 {
        uptake.arrived(1, message(true, vec![key]));
        note(uptake.decodes(1, 1, key * 1000));
        note(uptake.reads_clock(1, 1, key * 1000 + 1, STAMP));
    }
    for turn in 0..50 {
        let keys = [0, 1, 2].map(|n| 20 + 3 * turn + n);
        for key in keys {
            uptake.arrived(1, message(true, vec![key]));
            note(uptake.decodes(1, 1, key * 1000));
        }
        for key in keys {
            note(uptake.reads_clock(1, 1, (keys[2] + 1) * 1000 + key, HANDLER));
            note(uptake.reads_clock(1, 1, (keys[2] + 1) * 1000 + key, STAMP + 48 * (key % 2) as u32));
        }
    }
    for (key, at) in stamps.into_iter().skip(20) {
        assert_eq!(at % 1000, key, "{key}");
    }
}

#[test]
fn a_long_backlog_keeps_its_order_and_too_long_a_one_is_counted() {
    // 20 messages, each stamped at once │ 1,000 decoded, then 1,000 stamps, 10 s later
    let mut uptake = uptake();
    for key in 0..20 {
        uptake.arrived(1, message(true, vec![key]));
        uptake.decodes(1, 1, key);
        uptake.reads_clock(1, 1, key, STAMP);
    }
    for key in 100..1_100 {
        uptake.arrived(1, message(true, vec![key]));
        uptake.decodes(1, 1, 100);
    }
    for key in 100..1_100 {
        assert_eq!(keys(uptake.reads_clock(1, 1, 5 * MAX_AGE, STAMP)), [key]);
    }
    assert_eq!(uptake.take_given_up(), 0);
    for key in 0..=MAX_WAITING as u64 {
        uptake.arrived(1, message(true, vec![key]));
        uptake.decodes(1, 1, 6 * MAX_AGE);
    }
    assert_eq!(uptake.take_given_up(), MAX_WAITING as u64 + 1);
}

#[test]
fn messages_that_are_decoded_in_one_go_are_one_turn() {
    // two or three engines: decodes · decodes · (decodes) · handlers' clocks · as many stamps, again and again
    let mut uptake = uptake();
    let mut stamps: BTreeMap<u64, EventNanos> = BTreeMap::new();
    let mut key = 0;
    for turn in 0..u64::from(2 * TURNS) {
        let mut taken_up = TakenUp::new();
        let engines = 2 + turn % 2;
        for engine in 0..engines {
            uptake.arrived(1, message(true, vec![key + engine]));
            taken_up.extend(uptake.decodes(1, 1, turn * 1000));
        }
        for _ in 0..turn % 5 {
            taken_up.extend(uptake.reads_clock(1, 1, turn * 1000 + 1, HANDLER));
        }
        for engine in 0..engines {
            taken_up.extend(uptake.reads_clock(1, 1, turn * 1000 + 500 + engine, STAMP));
        }
        stamps.extend(taken_up.into_iter().flat_map(|(firsts, at)| firsts.into_iter().map(move |key| (key, at))));
        key += engines;
    }
    assert!(stamps.values().all(|at| at % 1000 >= 500), "{stamps:?}");
}
