//! A front end's decoder of messages: it gets to a message that it received.

use std::path::Path;

use tracer_ebpf::wire::call::FUNCTION_DECODE;

use super::{ENTERED, Family, Find, Library, Scope};
use crate::attach::Level;
use crate::input::{Probe, Role};

pub static MESSAGES: Family = Family {
    what: "decoder of messages (msgspec)",
    without: "ttft_engine ends when the first token arrives, not when the server takes it up",
    probe: Probe::FrontEnd,
    library: Library::Path(is_msgspec),
    roles: &[Role::Api],
    // An engine decodes as well.
    scope: Scope::Process,
    level: Level::Requests,
    needs_messages: true,
    unless: None,
    likeness: None,
    names_kernels: false,
    // `JSONDecoder_decode` is another one; `.cold` is no entry.
    points: Find::Code(|code| {
        code.functions(ENTERED, |symbol| (symbol == "Decoder_decode").then_some(FUNCTION_DECODE))
    }),
    hidden: "it has no symbols (stripped), so its functions cannot be found",
};

/// msgspec's extension module; other packages have a `_core` too.
fn is_msgspec(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let folder = path.parent().and_then(Path::file_name);
    let is_object = path.extension().is_some_and(|extension| extension == "so");
    name.starts_with("_core.") && is_object && folder.is_some_and(|folder| folder == "msgspec")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_told_from_others_of_its_name() {
        for (path, expected) in [
            ("/v/site-packages/msgspec/_core.cpython-312-x86_64-linux-gnu.so", true),
            ("/v/site-packages/pydantic/_core.cpython-312-x86_64-linux-gnu.so", false),
            ("/v/site-packages/msgspec/_core.pyi", false),
        ] {
            assert_eq!(is_msgspec(Path::new(path)), expected, "{path}");
        }
    }
}
