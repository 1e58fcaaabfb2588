//! Starts a demo engine for a test, and ends it with the test.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::judge::Target;
use inferspan_demo_engine::sys;

/// A running demo engine.
#[derive(Debug)]
pub struct DemoEngine {
    child: Child,
    pub target: Target,
    announcement: PathBuf,
}

impl DemoEngine {
    /// `command` starts `demo-engine`, perhaps through another program (`unshare`); `pid` finds the server's pid in our pid
    /// namespace, given the child's and the announced one.
    pub fn start(mut command: Command, folder: &Path, pid: impl Fn(u32, u32) -> Option<u32>) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let announcement = folder.join("server.json");
        let child = command
            .arg("--announce")
            .arg(&announcement)
            .stdin(Stdio::null())
            .stdout(fs::File::create(folder.join("server.stdout.txt"))?)
            .spawn()?;
        let mut engine =
            Self { child, target: Target { url: String::new(), model: String::new(), pid: 0 }, announcement };
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if let Ok(text) = fs::read_to_string(&engine.announcement) {
                let said: serde_json::Value = serde_json::from_str(&text)?;
                let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
                let announced = said["pid"].as_u64().unwrap_or(0) as u32;
                let pid = pid(engine.child.id(), announced).ok_or_else(|| io::Error::other("the server has no pid"))?;
                engine.target = Target { url: text("http"), model: text("model"), pid };
                return Ok(engine);
            }
            if let Some(status) = engine.child.try_wait()? {
                return Err(io::Error::other(format!("demo-engine ended before it was ready: {status}")));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(io::Error::other("demo-engine was not ready within 20 s"))
    }
}

impl Drop for DemoEngine {
    fn drop(&mut self) {
        // SIGTERM to the server itself: a wrapper around it ends with it.
        let server = if self.target.pid == 0 { self.child.id() } else { self.target.pid };
        let _ = sys::kill(server, libc::SIGTERM);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(10));
        }
        // One that is gone already needs no signal.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.announcement);
    }
}
