//! The functions of Hugging Face's tokenizer library that make tokens of text.

use tracer_ebpf::wire::call::FUNCTION_ENCODE;

use super::{Family, Find, Library, Scope, TIMED};
use crate::attach::Level;
use crate::discover::kind::is_tokenizer;
use crate::input::{Probe, Role};

pub static TOKENIZER: Family = Family {
    what: "tokenizer library",
    without: "tokenizer times will be missing",
    probe: Probe::Tokenizer,
    library: Library::Path(is_tokenizer),
    roles: &[Role::Api],
    scope: Scope::File,
    level: Level::Requests,
    needs_messages: true,
    unless: None,
    likeness: None,
    names_kernels: false,
    points: Find::Code(|code| code.functions(TIMED, |symbol| is_encode(symbol).then_some(FUNCTION_ENCODE))),
    hidden: "it has no symbols (stripped), so its functions cannot be found",
};

/// Whether a mangled name is one of the functions that make tokens of text: PyO3 wraps a method `m` in `__pymethod_m__`, and Rust's mangling adds a hash that
/// changes with every build (in the crate's name, or as `17h<16 hex>E` at the end).
fn is_encode(symbol: &str) -> bool {
    let name = match symbol.rsplit_once("17h") {
        Some((name, hash)) if hash.len() == 17 && hash.ends_with('E') => name,
        _ => symbol,
    };
    let Some(method) = name.strip_suffix("__") else { return false };
    let is = |class: &str, name: &str| symbol.contains(class) && method.ends_with(&format!("__pymethod_{name}"));
    ["encode", "encode_batch", "encode_batch_fast"].iter().any(|name| is("PyTokenizer", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_known_in_both_manglings_and_others_are_not() {
        let encode = "_RNvMsE_NtCs84oBVal8Hga_10tokenizers9tokenizerNtB5_11PyTokenizer19___pymethod_encode__";
        for (symbol, expected) in [
            (encode.to_owned(), true),
            (encode.replace("19___pymethod_encode__", "30___pymethod_encode_batch_fast__"), true),
            (encode.replace("encode", "decode"), false),
            (encode.replace("encode__", "encode_special_tokens__"), false),
            ("_RNvMs2y_NtCs84oBVal8Hga_10tokenizers8decodersNtB6_14PyDecodeStream17___pymethod_step__".into(), false),
            ("_ZN10tokenizers9tokenizer11PyTokenizer19___pymethod_encode__17h0123456789abcdefE".into(), true),
            ("__pymethod_encode__".into(), false),
            (String::new(), false),
        ] {
            assert_eq!(is_encode(&symbol), expected, "{symbol}");
        }
    }
}
