//! The clock of Python, `time.time`, found in an interpreter's file, stripped or not.
//!
//! CPython keeps the methods of a module in an
//! array of `PyMethodDef` (Include/methodobject.h; unchanged since Python 2), which names each function beside its address; the
//! linker leaves it in the file's data, or, where the file can lie anywhere, in relocations. Nothing else in a file looks like two
//! given names in a row with the right flags, so a hit is no guess.

use std::path::Path;

use tracer_ebpf::wire::call::FUNCTION_CLOCK;

use super::{ENTERED, Family, Find, Library, Scope};
use crate::attach::Level;
use crate::elf::Image;
use crate::input::{Probe, Role};

pub static CLOCK: Family = Family {
    what: "clock (time.time)",
    without: "ttft_engine ends when the first token arrives, not when the server takes it up",
    probe: Probe::FrontEnd,
    library: Library::Path(is_interpreter),
    roles: &[Role::Api],
    // Many a Python reads its clock.
    scope: Scope::Process,
    level: Level::Requests,
    needs_messages: true,
    unless: None,
    likeness: None,
    names_kernels: false,
    points: Find::Code(|code| {
        let point = |at| code.point(ENTERED, FUNCTION_CLOCK, at, "time.time");
        time_time(code.bytes()).and_then(point).into_iter().collect()
    }),
    hidden: "its table of methods is not found",
};

/// The Python interpreter: the executable, or the library where it is built as one.
fn is_interpreter(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("libpython3") || (name.starts_with("python") && !name.contains(".so"))
}

/// `METH_NOARGS`
const NO_ARGUMENTS: u32 = 0x0004;
/// `sizeof(PyMethodDef)`: name, function, flags, documentation.
const METHOD_BYTES: u64 = 32;

/// The function behind `time.time`: first of the module's methods, and `time_ns` behind it since Python 3.7.
fn time_time(bytes: &[u8]) -> Option<u64> {
    let image = Image::read(bytes).ok()?;
    image.data().find_map(|segment| {
        let last = segment.address + segment.size.saturating_sub(2 * METHOD_BYTES);
        (segment.address.next_multiple_of(8)..last).step_by(8).find_map(|at| {
            let is = |at: u64, name: &[u8]| image.pointer(at).is_some_and(|text| image.starts(text, name));
            let found = is(at, b"time\0") && is(at + METHOD_BYTES, b"time_ns\0");
            if found && image.word(at + 16) == Some(NO_ARGUMENTS) { image.pointer(at + 8) } else { None }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interpreter_is_known_by_its_name() {
        for (path, expected) in [
            ("/usr/lib/libpython3.11.so.1.0", true),
            ("/usr/bin/python3.12", true),
            ("/v/site-packages/torch/lib/libtorch_python.so", false),
            ("/v/lib/python3.11/lib-dynload/math.cpython-311-x86_64-linux-gnu.so", false),
        ] {
            assert_eq!(is_interpreter(Path::new(path)), expected, "{path}");
        }
    }
}
