//! What tracing costs a process that is not traced: the raw tracepoint sees every system call of the host.
//!
//! Times `read(/dev/zero, 1 byte)` and `getppid()` in this process, with nothing attached and with the programs attached to
//! another process, in turns; prints medians and their ratio. Needs what `inferspan attach` needs. Build with `--release`.

use std::process::{Command, Stdio};
use std::time::Instant;

use inferspan::attach::Target;
use inferspan::attach::loader::Options;
use inferspan::source::session::Session;

const CALLS: u32 = 1_000_000;
const ROUNDS: usize = 5;

fn nanoseconds_a_call(call: impl Fn()) -> f64 {
    let start = Instant::now();
    for _ in 0..CALLS {
        call();
    }
    start.elapsed().as_nanos() as f64 / f64::from(CALLS)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> anyhow::Result<()> {
    // SAFETY: the path ends in NUL.
    let zero = unsafe { libc::open(c"/dev/zero".as_ptr(), libc::O_RDONLY) };
    anyhow::ensure!(zero >= 0, "/dev/zero cannot be opened");
    let read = || {
        let mut byte = 0u8;
        // SAFETY: one byte fits.
        unsafe { libc::read(zero, (&raw mut byte).cast(), 1) };
    };
    let getppid = || {
        // SAFETY: no arguments; not cached by libc.
        unsafe { libc::getppid() };
    };
    let mut target = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn()?;
    let mut times: [[Vec<f64>; 2]; 2] = Default::default();
    for _ in 0..ROUNDS {
        for attached in [0, 1] {
            let targets = [Target { tgid: target.id(), capture: true, libraries: false }];
            let session = (attached == 1).then(|| Session::start(&Options::default(), &targets)).transpose()?;
            times[attached][0].push(nanoseconds_a_call(read));
            times[attached][1].push(nanoseconds_a_call(getppid));
            if let Some(session) = session {
                session.detach(|_| {});
            }
        }
    }
    target.kill()?;
    target.wait()?;
    let [without, with] = times.map(|calls| calls.map(median));
    for (index, name) in ["read", "getppid"].into_iter().enumerate() {
        let (without, with) = (without[index], with[index]);
        println!(
            "{name:8} {without:6.0} ns, while another process is traced {with:6.0} ns: {:.2} times",
            with / without
        );
    }
    Ok(())
}
