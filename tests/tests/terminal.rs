//! What `attach` shows on a terminal, on a real one: nothing wraps, nothing mixes, and what cannot be read is counted.
//!
//! Needs root for the attach; says loudly when it is skipped.

use std::fs;
use std::process::Command;
use std::time::Duration;

use inferspan_harness::folder::Folder;
use inferspan_harness::process::{Process, Signal};
use inferspan_harness::wait::{Interrupt, wait_for};
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;
use inferspan_tests::traffic::{Kind, Load, Until};

/// What a terminal shows when bytes like these come: whole lines, and the one in place as it was each time it was taken back.
#[derive(Debug, Default)]
struct Screen {
    lines: Vec<String>,
    placed: Vec<String>,
}

impl Screen {
    fn of(bytes: &[u8]) -> Self {
        let mut screen = Self::default();
        let mut line = String::new();
        let text = String::from_utf8_lossy(bytes);
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                '\n' => screen.lines.push(std::mem::take(&mut line)),
                '\r' => {}
                '\x1b' => {
                    let sequence: String = rest.by_ref().skip(1).take_while(|c| *c != 'm' && *c != 'K').collect();
                    if sequence == "2" {
                        screen.placed.push(std::mem::take(&mut line));
                    }
                }
                c => line.push(c),
            }
        }
        screen
    }
}

/// Forty requests a second and more, for so many seconds.
fn load(engine: &DemoEngine, seconds: u64) -> Load {
    Load {
        url: engine.target.url.clone(),
        model: engine.target.model.clone(),
        kinds: vec![Kind::CompletionStream, Kind::ChatStream, Kind::TooLong],
        clients: 12,
        until: Until::Elapsed(Duration::from_secs(seconds)),
        seed: 1,
    }
}

#[test]
fn at_eighty_columns_nothing_wraps_and_nothing_mixes_with_the_line_of_rates() {
    let test = "at_eighty_columns_nothing_wraps_and_nothing_mixes_with_the_line_of_rates";
    if !may_trace(test) {
        return;
    }
    let folder = Folder::new("terminal").expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_test-engine"));
    command.args(["--step-ms", "2"]);
    let engine = DemoEngine::start(command, folder.path(), |_, announced| Some(announced)).expect("a server");
    let mut command = Command::new(binary());
    // A log that cannot be written is complained of on stderr, which is the same terminal.
    command.args(["attach", "-p", &engine.target.pid.to_string(), "--access-log", "/dev/full"]);
    command.env("LANG", "C.UTF-8").env("TERM", "xterm").env_remove("NO_COLOR").env_remove("LC_ALL");
    let mut attach = Process::start_in_terminal("attach", &mut command, folder.path(), 80).expect("it starts");
    let output = attach.output.clone();
    let is_attached =
        || Ok(fs::read_to_string(&output).is_ok_and(|text| text.contains("inferspan: attached")).then_some(()));
    wait_for("inferspan to attach", Duration::from_mins(2), &Interrupt::never(), &mut [&mut attach], is_attached)
        .expect("it attaches");
    let sent = load(&engine, 6).run().expect("traffic").requests.len();
    std::thread::sleep(Duration::from_millis(1500));
    attach.stop_with(Signal::INT, Duration::from_secs(30)).expect("it ends");
    let screen = Screen::of(&fs::read(&attach.output).expect("its output"));
    assert!(sent > 6 * 20, "{sent} requests: more than a person reads");
    judge(&screen, sent);
}

fn judge(screen: &Screen, sent: usize) {
    let said = |line: &&String| !line.starts_with("inferspan:") && !line.starts_with("  ");
    for line in screen.lines.iter().filter(said).chain(&screen.placed) {
        assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
    }
    let placed: Vec<_> = screen.placed.iter().filter(|line| line.contains("req/s")).collect();
    assert!(placed.len() >= 5, "{} lines of rates", placed.len());
    assert!(placed.iter().all(|line| line.matches("req/s").count() == 1));
    assert!(screen.lines.iter().all(|line| !line.contains(" req/s · ")), "the line of rates stays");
    let complaint = |line: &&String| line.contains("No space left on device");
    assert!(screen.lines.iter().filter(complaint).all(|line| line.starts_with("inferspan: ")), "{:?}", screen.lines);
    assert!(screen.lines.iter().any(|line| complaint(&line)), "{:?}", screen.lines);
    // Every request is a row, or counted as one that is not shown.
    let rows = screen.lines.iter().filter(|line| line.get(2..3) == Some(":") && line.get(5..6) == Some(":"));
    let more = |line: &String| line.strip_prefix("… ")?.strip_suffix(" more")?.parse::<usize>().ok();
    let hidden: usize = screen.lines.iter().filter_map(more).sum();
    let shown = rows.clone().count();
    assert!(hidden > 0 && shown > 20, "{shown} shown, {hidden} not");
    assert_eq!(shown + hidden, sent);
    assert!(rows.clone().any(|line| line.contains("rejected 4")), "failed ones are shown");
    let heads = screen.lines.iter().filter(|line| line.starts_with("TIME ")).count();
    assert!(heads > shown / 41, "{heads} heads over {shown} rows");
}
