//! `inferspan top`, in a real terminal: keys do what they say, it fits, and the terminal is afterwards as it was.
//!
//! Needs root for the attach, and tmux; says loudly when it is skipped.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use inferspan_harness::folder::Folder;
use inferspan_harness::process::{Signal, send};
use inferspan_harness::wait::{Interrupt, wait_for};
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;
use inferspan_tests::tmux::Tmux;
use inferspan_tests::traffic::{Kind, Load, Until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;

fn engine(name: &str) -> (Folder, DemoEngine) {
    let folder = Folder::new(&format!("top-{name}")).expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_test-engine"));
    command.args(["--step-ms", "5"]);
    let engine = DemoEngine::start(command, folder.path(), |_, announced| Some(announced)).expect("a server");
    (folder, engine)
}

/// Does `what` while requests come: completions, chats, and some that are rejected. Of two loads, so that there are some while one begins
/// anew.
fn under_load(engine: &DemoEngine, what: impl FnOnce()) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (seed, milliseconds) in [(1, 500), (2, 1700)] {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Relaxed) {
                    let load = Load {
                        url: engine.target.url.clone(),
                        model: engine.target.model.clone(),
                        kinds: vec![Kind::CompletionStream, Kind::ChatStream, Kind::Long, Kind::TooLong],
                        clients: 4,
                        until: Until::Elapsed(Duration::from_millis(milliseconds)),
                        seed,
                    };
                    load.run().expect("traffic");
                }
            });
        }
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what));
        is_over.store(true, Relaxed);
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn start(tmux: &Tmux, engine: &DemoEngine) -> String {
    tmux.line(&format!("{} top -p {}", binary().display(), engine.target.pid));
    tmux.wait("requests", |text| text.contains("tok/s · TTFT") && text.contains("STATE") && text.contains("\nlength "))
}

/// Rows of the table: those below its head, above the line of keys.
fn rows(text: &str) -> Vec<String> {
    let below = text.lines().rev().skip(1).take_while(|line| !line.starts_with("STATE"));
    let mut rows: Vec<String> = below.filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    rows.reverse();
    rows
}

fn fits(text: &str, columns: usize, lines: usize) {
    assert!(text.lines().all(|line| line.chars().count() <= columns), "{text}");
    assert_eq!(text.lines().count(), lines, "{text}");
    assert!(
        text.lines().last().is_some_and(|line| line.contains("q quit")),
        "the last line says how to leave:\n{text}"
    );
}

#[test]
fn keys_do_what_they_say_and_the_terminal_is_afterwards_as_it_was() {
    let name = "keys_do_what_they_say_and_the_terminal_is_afterwards_as_it_was";
    if !may_trace(name) {
        return;
    }
    let Some(tmux) = Tmux::start(name, 80, 24) else { return };
    let (_folder, engine) = engine("keys");
    let before = tmux.modes();
    under_load(&engine, || {
        let text = start(&tmux, &engine);
        fits(&text, 80, 24);
        tmux.wait("a page of requests", |text| rows(text).len() > 10);
        looks(&tmux);
        drills_in(&tmux);
        tmux.resize(200, 50);
        let text = tmux
            .wait("a wider table", |text| text.contains("TPOT") && text.contains("TRACE") && text.contains("q quit"));
        fits(&text, 200, 50);
        tmux.resize(80, 24);
        tmux.wait("a narrow one again", |text| text.lines().count() == 24 && !text.contains("TRACE"));
        tmux.keys(&["q"]);
        tmux.prompt();
        assert!(!tmux.text().contains("STATE"), "its screen is gone");
    });
    assert_eq!(tmux.modes(), before);
}

/// Sorting, filtering, freezing, steps, help.
fn looks(tmux: &Tmux) {
    tmux.keys(&["t"]);
    tmux.wait("another order", |text| text.contains("by ttft"));
    tmux.keys(&["/"]);
    tmux.wait("a filter", |text| text.contains("filter: _"));
    tmux.keys(&["r", "e", "j", "e", "c"]);
    let is_rejected = |text: &str| !rows(text).is_empty() && rows(text).iter().all(|row| row.starts_with("rejected"));
    tmux.wait("rejected ones alone", |text| text.contains("filter: rejec_") && is_rejected(text));
    tmux.keys(&["Enter"]);
    tmux.wait("the filter kept", |text| text.contains("filter `rejec`") && is_rejected(text));
    tmux.keys(&["Escape"]);
    tmux.wait("all again", |text| !text.contains("filter `") && !is_rejected(text));
    tmux.keys(&["a", "Space"]);
    let frozen = tmux.wait("a frozen picture", |text| text.contains("FROZEN") && text.contains("by age"));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(tmux.text(), frozen);
    tmux.keys(&["Space"]);
    tmux.wait("one that moves", |text| !text.contains("FROZEN") && rows(text) != rows(&frozen));
    tmux.keys(&["s"]);
    let steps = tmux.wait("steps", |text| text.contains("engine 0") && text.contains("KV cache"));
    assert!(["took", "batch", "prefill", "decode", "waiting"].iter().all(|strip| steps.contains(strip)), "{steps}");
    fits(&steps, 80, 24);
    tmux.keys(&["?"]);
    tmux.wait("help", |text| text.contains("freeze the picture"));
    tmux.keys(&["Escape"]);
    tmux.wait("steps again", |text| text.contains("took   "));
    tmux.keys(&["Escape"]);
    tmux.wait("requests again", |text| text.contains("STATE"));
}

fn drills_in(tmux: &Tmux) {
    tmux.keys(&["/", "l", "e", "n", "g", "t", "h", "Enter", "Enter"]);
    let one = tmux.wait("a waterfall", |text| text.contains("inference_request"));
    assert!(one.contains("decode") && one.contains("trace ") && one.contains("why "), "{one}");
    fits(&one, 80, 24);
    tmux.keys(&["Escape"]);
    tmux.wait("the table", |text| text.contains("STATE"));
    tmux.keys(&["Escape"]);
}

#[test]
fn it_gives_the_terminal_back_however_it_is_ended() {
    let name = "it_gives_the_terminal_back_however_it_is_ended";
    if !may_trace(name) {
        return;
    }
    let Some(tmux) = Tmux::start(name, 80, 24) else { return };
    let (_folder, engine) = engine("ends");
    let before = tmux.modes();
    under_load(&engine, || {
        for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
            start(&tmux, &engine);
            send(tmux.child(), signal).expect("it runs");
            tmux.prompt();
            assert_eq!(tmux.modes(), before, "after {signal:?}");
        }
        start(&tmux, &engine);
        tmux.keys(&["C-c"]);
        tmux.prompt();
        assert_eq!(tmux.modes(), before, "after Ctrl-C");
        start(&tmux, &engine);
        tmux.keys(&["C-z"]);
        tmux.wait("the shell", |text| text.contains("Stopped"));
        assert_eq!(tmux.modes(), before, "after Ctrl-Z");
        tmux.line("fg");
        tmux.wait("requests again", |text| text.contains("STATE") && text.contains("req/s"));
        tmux.keys(&["q"]);
        tmux.prompt();
        assert_eq!(tmux.modes(), before, "after fg and q");
    });
}

/// A program that is gone with its owner.
struct Killed(Child);

impl Killed {
    fn ends(&mut self) {
        let is_over = || Ok(self.0.try_wait()?);
        wait_for("its end", Duration::from_secs(20), &Interrupt::never(), &mut [], is_over).expect("it ends");
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A terminal that answers nothing, of 200 by 50.
struct Bare {
    ours: File,
    theirs: File,
    name: CString,
}

impl Bare {
    fn open() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = File::from(openpt(flags).expect("a terminal"));
        grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("a terminal");
        let name = ptsname(&ours, Vec::new()).expect("its name");
        let theirs = Self::end(&name, OFlags::empty());
        tcsetwinsize(&theirs, Winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 }).expect("a size");
        Self { ours, theirs, name }
    }

    fn end(name: &CStr, more: OFlags) -> File {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | more;
        File::from(rustix::fs::open(name, flags, Mode::empty()).expect("its other end"))
    }

    fn modes(&self) -> String {
        let all = tcgetattr(&self.theirs).expect("a terminal");
        format!("{:?} {:?} {:?} {:?}", all.input_modes, all.output_modes, all.control_modes, all.local_modes)
    }

    /// What comes within `limit`, a piece of it.
    fn read(&mut self, limit: Timespec) -> Option<Vec<u8>> {
        let ready = poll(&mut [PollFd::new(&self.ours, PollFlags::IN)], Some(&limit)).expect("a terminal");
        let mut bytes = vec![0; 8192];
        let read = if ready > 0 { self.ours.read(&mut bytes).expect("a picture") } else { return None };
        bytes.truncate(read);
        Some(bytes)
    }

    /// Starts `top` on it, and reads until a whole picture is of requests.
    fn top(&mut self, engine: &DemoEngine) -> Killed {
        let end = || Stdio::from(self.theirs.try_clone().expect("another"));
        let mut command = Command::new(binary());
        command.args(["top", "-p", &engine.target.pid.to_string()]).env("TERM", "xterm");
        let top = Killed(command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("it starts"));
        let mut seen = Vec::new();
        let is_whole = |seen: &[u8]| {
            let text = String::from_utf8_lossy(seen);
            text.split("\x1b[?2026h").skip(1).any(|one| one.contains("STATE") && one.contains("\x1b[?2026l"))
        };
        while !is_whole(&seen) {
            let more = self.read(Timespec { tv_sec: 60, tv_nsec: 0 });
            seen.extend(more.unwrap_or_else(|| panic!("no picture: {:?}", String::from_utf8_lossy(&seen))));
        }
        top
    }

    /// Fills it, so that whoever draws waits.
    fn fill(&self) {
        let stuffed = Self::end(&self.name, OFlags::NONBLOCK);
        for _ in 0..3 {
            while rustix::io::write(&stuffed, &[b' '; 4096]).is_ok() {}
            std::thread::sleep(Duration::from_millis(600));
        }
    }
}

#[test]
fn a_terminal_that_nobody_reads_has_its_modes_back_soon_after_the_end() {
    // it is drawn on and read, and answers nothing │ nobody reads: it fills, and the next picture waits for room │ SIGTERM
    if !may_trace("a_terminal_that_nobody_reads_has_its_modes_back_soon_after_the_end") {
        return;
    }
    let mut terminal = Bare::open();
    let before = terminal.modes();
    let (_folder, engine) = engine("unread");
    under_load(&engine, || {
        let mut top = terminal.top(&engine);
        assert_ne!(terminal.modes(), before, "it is taken");
        terminal.fill();
        send(top.0.id(), Signal::TERM).expect("it runs");
        top.ends();
        assert_eq!(terminal.modes(), before);
    });
}

#[test]
fn a_key_that_comes_with_a_new_size_of_the_window_is_not_lost() {
    // a picture waits for room │ SIGWINCH │ q │ the terminal is read again: both are there at once
    if !may_trace("a_key_that_comes_with_a_new_size_of_the_window_is_not_lost") {
        return;
    }
    let mut terminal = Bare::open();
    let (_folder, engine) = engine("resized");
    under_load(&engine, || {
        let mut top = terminal.top(&engine);
        terminal.fill();
        send(top.0.id(), Signal::WINCH).expect("it runs");
        std::thread::sleep(Duration::from_millis(100));
        terminal.ours.write_all(b"q").expect("a key");
        std::thread::sleep(Duration::from_millis(100));
        let deadline = Instant::now() + Duration::from_secs(20);
        while top.0.try_wait().expect("it is ours").is_none() {
            assert!(Instant::now() < deadline, "q does nothing");
            terminal.read(Timespec { tv_sec: 0, tv_nsec: 100_000_000 });
        }
    });
}

#[test]
fn a_panic_anywhere_gives_the_terminal_back_and_its_message_stays() {
    let name = "a_panic_anywhere_gives_the_terminal_back_and_its_message_stays";
    let Some(tmux) = Tmux::start(name, 80, 24) else { return };
    let before = tmux.modes();
    for (how, message) in [("main", "the first thread fails"), ("thread", "another thread fails"), ("drop", "")] {
        tmux.line(&format!("{} {how}; echo over", env!("CARGO_BIN_EXE_screen-panics")));
        let text = tmux.wait("its end", |text| text.lines().any(|line| line == "over"));
        assert!(text.contains(message) && !text.contains("drawn over all"), "{text}");
        assert_eq!(tmux.modes(), before, "{how}");
    }
}

#[test]
fn without_a_terminal_it_is_asked_for_one_picture() {
    let name = "without_a_terminal_it_is_asked_for_one_picture";
    if !may_trace(name) {
        return;
    }
    let (_folder, engine) = engine("once");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["top", "-p", &engine.target.pid.to_string()]).args(arguments).stdin(Stdio::null());
        let output = command.env("COLUMNS", "80").env("LANG", "C.UTF-8").output().expect("inferspan");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, _, said) = run(&[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("needs a terminal") && said.contains("--once"), "{said}");
    under_load(&engine, || {
        let (code, text, said) = run(&["--once", "--for", "2"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(text.contains("req/s") && text.contains("STATE") && text.contains(" open, "), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let (code, text, said) = run(&["--once", "--json", "--for", "2", "--sort", "ttft"]);
        assert_eq!(code, Some(0), "{said}");
        let picture: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(picture["schema"], "inferspan.top/1");
        let list = |name: &str| picture[name].as_array().expect("a list").clone();
        assert!(
            list("open").iter().any(|open| open["stage"] == "producing" && open["output_tokens"].as_u64() > Some(0))
        );
        let over = list("over");
        assert!(over.iter().any(|over| over["outcome"] == "length" && over["seconds"]["ttft"].as_f64() > Some(0.0)));
        let ttft: Vec<f64> = over.iter().filter_map(|over| over["seconds"]["ttft"].as_f64()).collect();
        assert!(ttft.is_sorted_by(|a, b| a >= b), "{ttft:?}");
        assert!(picture["figures"]["requests_per_second"].as_f64() > Some(0.5), "{}", picture["figures"]);
        let steps = &list("steps")[0];
        assert!(steps["steps"].as_array().is_some_and(|steps| steps.len() > 20), "{steps}");
    });
}
