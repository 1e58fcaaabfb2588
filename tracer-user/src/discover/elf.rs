//! Functions of interest in a tokenizer library.
//!
//! Enters: a file that a target has mapped. Leaves: how many symbols of each [`Function`] it defines. Pure below
//! [`tokenizer_functions`]. Refused: files above a cap, and what is no ELF file; the file is the target's, so its parser
//! is one that checks every bound (`object`).

use std::fs::File;
use std::io;
use std::path::Path;

use object::read::ReadCache;
use object::{Object as _, ObjectSymbol as _, SymbolKind};

use crate::input::Function;

/// The library of tokenizers 0.23 is 11 MB with 25,090 symbols.
const FILE_MAX: u64 = 1 << 30;
const SYMBOLS_MAX: usize = 4_000_000;

/// Symbols found, by what they time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenizerFunctions {
    pub encode: usize,
    pub decode_step: usize,
}

/// The tokenizer functions that the library at `path` defines.
pub fn tokenizer_functions(path: &Path) -> io::Result<TokenizerFunctions> {
    let file = File::open(path)?;
    if file.metadata()?.len() > FILE_MAX {
        return Err(io::Error::other("the file is too large to be a tokenizer library"));
    }
    let cache = ReadCache::new(file);
    let elf = object::File::parse(&cache).map_err(io::Error::other)?;
    let mut found = TokenizerFunctions::default();
    for symbol in
        elf.symbols().take(SYMBOLS_MAX).filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
    {
        match symbol.name().ok().and_then(function_of) {
            Some(Function::Encode) => found.encode += 1,
            Some(Function::DecodeStep) => found.decode_step += 1,
            None => {}
        }
    }
    Ok(found)
}

/// Which function a mangled name is: PyO3 wraps a method `m` in `__pymethod_m__`, and Rust's mangling adds a hash that
/// changes with every build (in the crate's name, or as `17h<16 hex>E` at the end).
pub fn function_of(symbol: &str) -> Option<Function> {
    let name = match symbol.rsplit_once("17h") {
        Some((name, hash)) if hash.len() == 17 && hash.ends_with('E') => name,
        _ => symbol,
    };
    let method = name.strip_suffix("__")?;
    let is = |class: &str, name: &str| symbol.contains(class) && method.ends_with(&format!("__pymethod_{name}"));
    if ["encode", "encode_batch", "encode_batch_fast"].iter().any(|name| is("PyTokenizer", name)) {
        Some(Function::Encode)
    } else if is("PyDecodeStream", "step") {
        Some(Function::DecodeStep)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_known_in_both_manglings_and_others_are_not() {
        let encode = "_RNvMsE_NtCs84oBVal8Hga_10tokenizers9tokenizerNtB5_11PyTokenizer19___pymethod_encode__";
        for (symbol, expected) in [
            (encode.to_owned(), Some(Function::Encode)),
            (encode.replace("19___pymethod_encode__", "30___pymethod_encode_batch_fast__"), Some(Function::Encode)),
            (encode.replace("encode", "decode"), None),
            (encode.replace("encode__", "encode_special_tokens__"), None),
            (
                "_RNvMs2y_NtCs84oBVal8Hga_10tokenizers8decodersNtB6_14PyDecodeStream17___pymethod_step__".into(),
                Some(Function::DecodeStep),
            ),
            (
                "_ZN10tokenizers9tokenizer11PyTokenizer19___pymethod_encode__17h0123456789abcdefE".into(),
                Some(Function::Encode),
            ),
            ("__pymethod_encode__".into(), None),
            (String::new(), None),
        ] {
            assert_eq!(function_of(&symbol), expected, "{symbol}");
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_an_error() {
        assert!(tokenizer_functions(Path::new("/proc/self/cmdline")).is_err());
        assert!(tokenizer_functions(Path::new("/nonexistent")).is_err());
        // This test's own binary is an ELF file and no tokenizer.
        assert_eq!(tokenizer_functions(Path::new("/proc/self/exe")).unwrap(), TokenizerFunctions::default());
    }
}
