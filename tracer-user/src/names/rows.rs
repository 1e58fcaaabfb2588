//! The kernels of a library as rows: a table for people, JSON for programs.
//!
//! Enters: a library's table. Leaves: text, written as it is made: libtorch has 24,000 kernels, with 18 MB of demangled names. Invariant:
//! nothing of a name reaches a terminal but through the sanitiser.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use crate::kernel::Table;
use crate::kernel::demangle::DEMANGLED_MAX;
use crate::kernel::name::Kernel;
use crate::sanitise::{self, sanitise};

const SCHEMA: &str = "inferspan.names/1";
/// Characters of a short name; longer ones push the rest of their line.
const SHORT_WIDTH: usize = 44;
/// Hexadecimal digits of most addresses, and characters of the longest class.
const ADDRESS_WIDTH: usize = 10;
const CLASS_WIDTH: usize = 13;

#[derive(Serialize)]
struct Row<'k> {
    address: u64,
    name: &'k str,
    demangled: &'k str,
    short: &'k str,
    class: &'static str,
}

/// `inferspan.names/1`, one object a library.
pub fn json(path: &Path, table: &Table, out: &mut impl Write) -> io::Result<()> {
    write!(out, "{{\"schema\":\"{SCHEMA}\",\"library\":")?;
    let write = |text: String, out: &mut dyn Write| out.write_all(sanitise::json(&text).as_bytes());
    write(serde_json::to_string(&path.to_string_lossy())?, out)?;
    out.write_all(b",\"kernels\":[")?;
    for (number, (address, name)) in table.kernels().enumerate() {
        if number > 0 {
            out.write_all(b",")?;
        }
        let Kernel { name, demangled, short, class } = &Kernel::named(name);
        write(serde_json::to_string(&Row { address, name, demangled, short, class: class.name() })?, out)?;
    }
    out.write_all(b"]}\n")
}

/// One line a kernel. `width`: columns of the terminal, where it is one; what is longer is cut.
pub fn text(table: &Table, width: Option<usize>, out: &mut impl Write) -> io::Result<()> {
    if table.is_empty() {
        return Ok(());
    }
    let mut line = |address: &str, class: &str, short: &str, demangled: &str| {
        let row = format!("{address:ADDRESS_WIDTH$}  {class:CLASS_WIDTH$}  {short:SHORT_WIDTH$}  {demangled}");
        writeln!(out, "{}", sanitise(&row, width.unwrap_or(2 * DEMANGLED_MAX)))
    };
    line("ADDRESS", "CLASS", "SHORT", "DEMANGLED")?;
    for (address, name) in table.kernels() {
        let kernel = Kernel::named(name);
        line(&format!("{address:#x}"), kernel.class.name(), &kernel.short, &kernel.demangled)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(path: &str, table: &Table) -> String {
        let mut out = Vec::new();
        json(Path::new(path), table, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_json_is_the_promised_one() {
        assert_eq!(
            document("/a \"b\".so", &Table::default()),
            "{\"schema\":\"inferspan.names/1\",\"library\":\"/a \\\"b\\\".so\",\"kernels\":[]}\n"
        );
        let table = Table::of_kernels([(16, "_Z10add_kernelPfPKfi"), (8, "_fwd_kernel")]);
        assert_eq!(
            document("/a", &table),
            concat!(
                "{\"schema\":\"inferspan.names/1\",\"library\":\"/a\",\"kernels\":[",
                "{\"address\":8,\"name\":\"_fwd_kernel\",\"demangled\":\"_fwd_kernel\",\"short\":\"_fwd_kernel\",\"class\":\"attention\"},",
                "{\"address\":16,\"name\":\"_Z10add_kernelPfPKfi\",\"demangled\":\"add_kernel(float*, float const*, int)\",",
                "\"short\":\"add_kernel\",\"class\":\"other\"}]}\n"
            )
        );
    }

    #[test]
    fn a_name_that_moves_the_cursor_does_not_reach_the_terminal() {
        let mut out = Vec::new();
        text(&Table::of_kernels([(1, "a\u{1b}[2J\u{202e}b")]), None, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(!text.contains(['\u{1b}', '\u{202e}']) && text.contains("a\u{fffd}[2J\u{fffd}b"), "{text:?}");
    }
}
