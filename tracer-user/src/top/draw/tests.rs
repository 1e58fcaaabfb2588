use std::sync::Arc;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::core::view::{EngineNow, Stage};
use crate::export::access_log::tests::record;
use crate::export::meter::Figures;
use crate::output::{AccessRecord, Merit, Outcome, Service, Trace};
use crate::sanitise::is_unsafe;
use crate::store::Request;
use crate::store::now::{Now, OpenRequest, ServerNow};
use crate::top::picture::Sort;

const STYLE: Style = Style { color: true, unicode: true, width: 80, has_cursor: true };

fn open(nth: u64, name: &str) -> OpenRequest {
    OpenRequest {
        id: Some(format!("cmpl-{nth}{name}")),
        route: Some(format!("/v1/completions{name}")),
        model: Some(format!("m{name}")),
        stage: if nth.is_multiple_of(3) { Stage::Waiting } else { Stage::Producing },
        since: nth * 1_000_000,
        sent: Some(nth * 1_000_000 + 1000),
        scheduled: Some(nth * 1_000_000 + 2000),
        first_token: (!nth.is_multiple_of(3)).then_some(nth * 1_000_000 + 3000),
        preemptions: nth % 2,
        prompt_tokens: Some(100),
        output_tokens: nth,
        engine: Some(0),
        lost: false,
    }
}

/// So many open requests, as many that are over; every string of the target's ends so.
fn picture(count: u64, name: &str) -> Picture {
    let server = ServerNow {
        server: format!("vllm-42{name}"),
        now: 20_000_000_000,
        open: (0..count).map(|nth| open(nth, name)).collect(),
        open_count: count as usize,
        engines: Vec::<EngineNow>::new(),
    };
    let over = |nth: u64| Request {
        trace: Arc::new(Trace {
            server: Arc::default(),
            service: Service::Requests,
            spans: vec![],
            merit: Merit::default(),
        }),
        record: Some(Arc::new(AccessRecord {
            model: Some(format!("m{name}")),
            path: Some(format!("/v1/chat/completions{name}")),
            output_tokens: Some(nth),
            outcome: if nth == 1 { Outcome::Rejected } else { Outcome::Stop },
            ..record()
        })),
    };
    let over: Vec<Request> = (0..count.min(2000)).map(over).collect();
    let figures = Figures { requests_rate: Some(40.0), running: Some(8), waiting: Some(2), ..Figures::default() };
    let over_count = over.len();
    Picture {
        figures,
        now: Some(Arc::new(Now { servers: vec![server.clone(), server] })),
        over,
        over_count,
        missed: 7,
        steps: vec![],
    }
}

fn drawn(picture: &Picture, looking: &Looking, (columns, lines): (u16, u16), style: Style) -> Vec<String> {
    let rows = picture.rows(looking.sort, &looking.filter);
    let shown = Shown::default();
    let warning = Some(("a warning", 2));
    let scene = Scene { picture, looking, rows: &rows, shown: &shown, title: "vllm-42 m", warning, style };
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
    terminal.draw(|frame| draw(frame, &scene)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let line = |y: u16| (0..columns).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>();
    (0..lines).map(line).collect()
}

#[test]
fn a_screen_of_eighty_by_24_has_all_that_matters() {
    let lines = drawn(&picture(3, ""), &Looking::default(), (80, 24), STYLE);
    assert!(lines[0].starts_with("vllm-42 m  6 open, 3 over"), "{}", lines[0]);
    assert!(lines[1].starts_with("40.0 req/s"), "{}", lines[1]);
    assert!(lines[2].starts_with("8 running 2 waiting · 0 lost · 7 missed"), "{}", lines[2]);
    assert!(lines[3].starts_with("(2 warnings) a warning"), "{}", lines[3]);
    assert_eq!(lines[4].trim_end(), "STATE           E2E   TTFT  QUEUE    IN   OUT PHASES            REQUEST");
    assert!(lines[5].starts_with("waiting       20.0s      -    1us   100     0 "), "{}", lines[5]);
    assert!(lines[7].starts_with("producing!    20.0s    3us    1us   100     1 "), "{}", lines[7]);
    assert!(lines[11].starts_with("stop          1.23s 12.3ms  100us    12     0 "), "{}", lines[11]);
    assert!(lines[23].contains("by age") && lines[23].contains("q quit"), "{}", lines[23]);
}

#[test]
fn what_is_open_is_not_called_none_where_nobody_looked() {
    let lines = drawn(&Picture { now: None, ..picture(3, "") }, &Looking::default(), (80, 24), STYLE);
    assert!(lines[0].starts_with("vllm-42 m  ? open, 3 over"), "{}", lines[0]);
}

#[test]
fn what_the_target_controls_cannot_reach_the_screen_raw_at_any_size() {
    let hostile = "\x1b[2J\u{202e}模型\u{200b}👩‍👩‍👧❤\u{fe0f}".repeat(9);
    let picture = picture(30, &hostile);
    for page in [Page::Requests, Page::Steps, Page::Help, Page::Request] {
        let looking = Looking { page, filter: hostile.clone(), is_typing: true, ..Looking::default() };
        for size in [(1, 1), (20, 5), (80, 24), (100, 30), (200, 50)] {
            for style in [STYLE, Style { unicode: false, ..STYLE }] {
                let text = drawn(&picture, &looking, size, style).concat();
                assert!(!text.chars().any(is_unsafe), "{text:?}");
                assert!(style.unicode || text.is_ascii(), "{text:?}");
            }
        }
    }
}

#[test]
fn the_chosen_row_stays_in_sight_and_the_filter_leaves_what_matches() {
    let picture = picture(100, "");
    let looking = Looking { row: 250, ..Looking::default() };
    let lines = drawn(&picture, &looking, (80, 24), STYLE);
    assert!(lines[22].starts_with("stop "), "{lines:?}");
    let looking = Looking { filter: "REJECTED".into(), ..Looking::default() };
    let lines = drawn(&picture, &looking, (80, 24), STYLE);
    assert!(lines[5].starts_with("rejected") && lines[6].trim().is_empty(), "{lines:?}");
}

/// The time is printed (`--nocapture`); the bound is loose enough for a build without optimisation on a busy machine.
#[test]
fn a_large_node_is_drawn_quickly() {
    let picture = picture(8192 / 2, "");
    for sort in [Sort::Age, Sort::Ttft, Sort::Tokens] {
        let looking = Looking { sort, filter: "m".into(), ..Looking::default() };
        let started = Instant::now();
        let lines = drawn(&picture, &looking, (200, 50), STYLE);
        let took = started.elapsed();
        println!("8,192 open requests and 2,000 that are over, by {}: {took:?}", sort.name());
        assert!(lines[0].contains("8192 open"), "{}", lines[0]);
        assert!(took < Duration::from_millis(500), "{took:?}");
    }
}
