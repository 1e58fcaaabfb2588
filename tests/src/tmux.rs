//! A terminal to try a program in, as a person does: tmux, with a shell in it.
//!
//! Enters: a size, keys. Leaves: what stands on the screen, and how the terminal is set. It is gone with its owner.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use inferspan_harness::folder::Folder;
use inferspan_harness::wait::{Interrupt, wait_for};

/// For something to appear: attaching takes seconds where the machine is busy.
const LIMIT: Duration = Duration::from_mins(1);
/// A screen that stands so long is no half of a picture: tmux takes what is written to it a few kilobytes at a time.
const STILL: Duration = Duration::from_millis(100);
/// What the shell asks with.
const PROMPT: &str = "ready>";

/// A shell in a terminal.
#[derive(Debug)]
pub struct Tmux {
    program: String,
    /// Its server's name: a server of its own.
    name: String,
    folder: Folder,
}

impl Tmux {
    /// `None`, said loudly, where there is no tmux.
    ///
    /// # Panics
    /// Where it must be there, or does not start.
    pub fn start(test: &str, columns: u16, rows: u16) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let program = std::env::var("INFERSPAN_TMUX").unwrap_or_else(|_| "tmux".to_owned());
        if Command::new(&program).arg("-V").output().is_err() {
            let must = std::env::var_os("INFERSPAN_REQUIRE_BACKENDS").is_some();
            assert!(!must, "there is no tmux: `cargo xtask setup tmux` installs it");
            eprintln!("SKIPPED {test}: needs tmux");
            return None;
        }
        let name = format!("inferspan-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let folder = Folder::new(&name).expect("a folder");
        let tmux = Self { program, name, folder };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let shell = "env LANG=C.UTF-8 LC_ALL= NO_COLOR= bash --norc --noprofile";
        tmux.call(&["-u", "-f", "/dev/null", "new-session", "-d", "-x", &columns, "-y", &rows, shell]);
        tmux.line(&format!("PS1='{PROMPT} '; clear"));
        tmux.wait("the shell", |text| text.trim() == PROMPT);
        Some(tmux)
    }

    fn call(&self, arguments: &[&str]) -> Output {
        let output = Command::new(&self.program).args(["-L", &self.name]).args(arguments).output().expect("tmux");
        assert!(output.status.success(), "tmux {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    fn said(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.call(arguments).stdout).expect("UTF-8")
    }

    /// Types keys, by tmux' names (`Enter`, `Escape`, `C-c`), or letters.
    pub fn keys(&self, keys: &[&str]) {
        self.call(&[&["send-keys"], keys].concat());
    }

    /// Types a command.
    pub fn line(&self, line: &str) {
        self.call(&["send-keys", "-l", line]);
        self.keys(&["Enter"]);
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        self.call(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
    }

    /// What stands on the screen.
    pub fn text(&self) -> String {
        self.said(&["capture-pane", "-p"])
    }

    /// Waits until the screen is so and stands still, and gives it.
    ///
    /// # Panics
    /// When it does not come to that.
    pub fn wait(&self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let look = || {
            let text = self.text();
            if !is(&text) {
                return Ok(None);
            }
            std::thread::sleep(STILL);
            Ok((self.text() == text).then_some(text))
        };
        wait_for(what, LIMIT, &Interrupt::never(), &mut [], look)
            .unwrap_or_else(|error| panic!("{error:#}; the screen:\n{}", self.text()))
    }

    /// The program that the shell runs.
    ///
    /// # Panics
    /// When it runs none.
    pub fn child(&self) -> u32 {
        let shell = self.said(&["display-message", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).expect("/proc");
        children.split_whitespace().last().and_then(|child| child.parse().ok()).expect("a child of the shell")
    }

    /// Waits until the shell asks for a command again.
    pub fn prompt(&self) -> String {
        self.wait("the prompt", |text| text.trim_end().ends_with(PROMPT))
    }

    /// How the terminal is set: its modes, whether the other screen is shown, whether the cursor is.
    pub fn modes(&self) -> String {
        let file = self.folder.path().join("modes");
        let _ = std::fs::remove_file(&file);
        self.line(&format!("stty -a > {0}.part; mv {0}.part {0}; clear", file.display()));
        let read = || Ok(std::fs::read_to_string(&file).ok());
        let modes = wait_for("the modes", LIMIT, &Interrupt::never(), &mut [], read).expect("the modes");
        self.wait("a clear screen", |text| text.trim() == PROMPT);
        // The size is the window's.
        let modes: Vec<&str> = modes.lines().skip(1).collect();
        let shown = self.said(&["display-message", "-p", "alternate #{alternate_on} cursor #{cursor_flag}"]);
        format!("{}\n{shown}", modes.join("\n"))
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = Command::new(&self.program).args(["-L", &self.name, "kill-server"]).output();
    }
}
