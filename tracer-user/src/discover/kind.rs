//! What a mapped library is, by its path: the one rule for it.

use std::path::Path;

/// What a library is to a front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Hugging Face's tokenizer library (`tokenizers.abi3.so`, or one built for one Python).
    Tokenizer,
    /// msgspec's extension module, which decodes the engine's messages.
    Messages,
    /// The Python interpreter: the executable, or the library where it is built as one.
    Interpreter,
}

impl Kind {
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let is_library = path.extension().is_some_and(|extension| extension == "so");
        let folder = path.parent().and_then(Path::file_name);
        if is_library && name.starts_with("tokenizers.") {
            Some(Self::Tokenizer)
        } else if is_library && name.starts_with("_core.") && folder.is_some_and(|folder| folder == "msgspec") {
            Some(Self::Messages)
        } else if name.starts_with("libpython3") || (name.starts_with("python") && !name.contains(".so")) {
            Some(Self::Interpreter)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_known_by_its_name() {
        for (path, expected) in [
            ("/v/site-packages/tokenizers/tokenizers.abi3.so", Some(Kind::Tokenizer)),
            ("/v/site-packages/msgspec/_core.cpython-312-x86_64-linux-gnu.so", Some(Kind::Messages)),
            ("/v/site-packages/pydantic/_core.cpython-312-x86_64-linux-gnu.so", None),
            ("/usr/lib/libpython3.11.so.1.0", Some(Kind::Interpreter)),
            ("/usr/bin/python3.12", Some(Kind::Interpreter)),
            ("/v/site-packages/torch/lib/libtorch_python.so", None),
            ("/v/lib/python3.11/lib-dynload/math.cpython-311-x86_64-linux-gnu.so", None),
        ] {
            assert_eq!(Kind::of(Path::new(path)), expected, "{path}");
        }
    }
}
