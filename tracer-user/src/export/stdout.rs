//! Stdout, whose reader may go away (`| head`): that is how a person stops reading, and no failure.

use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Whether nobody can read it any more: a pipe without a reader. A terminal and a file always can be.
pub fn is_closed() -> bool {
    let stdout = io::stdout();
    // Errors are told whatever is asked for.
    let mut asked = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&now)).is_ok() && asked[0].revents().contains(PollFlags::ERR)
}

/// Stdout until its reader goes away (`| head`), then nowhere: that is how a person stops reading, and no failure.
#[derive(Debug, Default)]
pub struct Stdout {
    is_closed: bool,
}

impl io::Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_closed {
            return Ok(bytes.len());
        }
        match io::stdout().write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(bytes.len())
            }
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match io::stdout().flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(())
            }
            result => result,
        }
    }
}
