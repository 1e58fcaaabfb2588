//! What a mapped library is to discovery, by its path: the one rule for it. What else is probed is known by its family.

use std::path::Path;

/// Hugging Face's tokenizer library (`tokenizers.abi3.so`, or one built for one Python).
pub fn is_tokenizer(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("tokenizers.") && path.extension().is_some_and(|extension| extension == "so")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizer_is_known_by_its_name() {
        for (path, expected) in [
            ("/v/site-packages/tokenizers/tokenizers.abi3.so", true),
            ("/v/site-packages/tokenizers/tokenizers.cpython-312-x86_64-linux-gnu.so", true),
            ("/v/site-packages/tokenizers/tokenizers.py", false),
            ("/v/site-packages/msgspec/_core.cpython-312-x86_64-linux-gnu.so", false),
        ] {
            assert_eq!(is_tokenizer(Path::new(path)), expected, "{path}");
        }
    }
}
