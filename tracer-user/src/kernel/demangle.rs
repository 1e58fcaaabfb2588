//! Mangled names (Itanium C++ ABI) as a person reads them.
//!
//! Enters: a device name. Leaves: its demangled form, or nothing where it is not mangled or not to be understood. Invariant: depth and
//! length of the result are bounded, since a name of a few bytes may stand for gigabytes (substitutions that double) and one of many
//! for a deep recursion.

use std::fmt::{self, Write as _};

use cpp_demangle::{DemangleOptions, DemangleWrite, ParseOptions, Symbol};

/// Depth of types in types. All 87,000 names of a GPU server's libraries (torch, NCCL, cuBLAS, cuDNN …) need less than 96; at 160 an
/// unoptimised build overflows a thread's stack of 2 MiB.
const DEPTH_MAX: u32 = 128;
/// Longest name that is tried, bytes; the longest seen has 11,000.
const MANGLED_MAX: usize = 64 << 10;
/// Longest result, bytes; the longest seen has 48,000.
pub const DEMANGLED_MAX: usize = 256 << 10;

/// Whether a name is mangled. `__Z` is what some platforms make of it; none of CUDA's.
pub fn is_mangled(name: &str) -> bool {
    name.starts_with("_Z")
}

/// The demangled form of a mangled name.
pub fn demangle(name: &str) -> Option<String> {
    if !is_mangled(name) || name.len() > MANGLED_MAX {
        return None;
    }
    let parse = ParseOptions::default().recursion_limit(DEPTH_MAX);
    let print = DemangleOptions::new().recursion_limit(DEPTH_MAX);
    let symbol = Symbol::new_with_options(name.as_bytes(), &parse).ok()?;
    let mut text = Bounded(String::with_capacity(name.len() * 2));
    symbol.structured_demangle(&mut text, &print).ok()?;
    Some(with_suffixes(&text.0)).filter(|text| !text.is_empty())
}

/// Types of numbers as this demangler writes them, and as `c++filt` and PyTorch's profiler do, which users compare with.
const SUFFIXES: [(&str, &str); 5] = [
    ("(unsigned int)", "u"),
    ("(unsigned long)", "ul"),
    ("(long)", "l"),
    ("(unsigned long long)", "ull"),
    ("(long long)", "ll"),
];

/// `(unsigned int)128` becomes `128u`.
fn with_suffixes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = memchr::memchr(b'(', rest.as_bytes()) {
        let (before, from) = rest.split_at(open);
        out.push_str(before);
        let number = SUFFIXES.iter().find_map(|(cast, suffix)| Some((from.strip_prefix(cast)?, suffix)));
        let digits = |text: &str| {
            let sign = usize::from(text.starts_with('-'));
            let digits = text[sign..].bytes().take_while(u8::is_ascii_digit).count();
            (digits > 0).then_some(sign + digits)
        };
        if let Some((after, suffix)) = number
            && let Some(len) = digits(after)
        {
            out.push_str(&after[..len]);
            out.push_str(suffix);
            rest = &after[len..];
        } else {
            out.push('(');
            rest = &from[1..];
        }
    }
    out.push_str(rest);
    out
}

/// Text of at most [`DEMANGLED_MAX`] bytes.
struct Bounded(String);

impl DemangleWrite for Bounded {
    fn write_string(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > DEMANGLED_MAX {
            return Err(fmt::Error);
        }
        self.0.write_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_real_kernels_are_demangled() {
        let name = "_ZN4vllm17activation_kernelIN3c108BFloat16EXadL_ZNS_19relu_squared_kernelIS2_EET_RKS4_EELb0ELb0EEEvPS4_PS5_i";
        let demangled = demangle(name).unwrap();
        assert!(demangled.starts_with("void vllm::activation_kernel<c10::BFloat16, "), "{demangled}");
        assert_eq!(demangle("_Z10add_kernelPfPKfi").unwrap(), "add_kernel(float*, float const*, int)");
    }

    #[test]
    fn numbers_have_their_types_behind_them() {
        let name = "_ZN4vllm24merge_attn_states_kernelIttLj128ELb0EEEvPT0_PfPKT_";
        let demangled = demangle(name).unwrap();
        assert!(
            demangled.starts_with("void vllm::merge_attn_states_kernel<unsigned short, unsigned short, 128u, false>(")
        );
        for (text, expected) in [
            ("f<(unsigned long)4096>(int)", "f<4096ul>(int)"),
            ("f<(long)-3, (long long)7>", "f<-3l, 7ll>"),
            ("f(unsigned int)", "f(unsigned int)"),
            ("f(long)::g", "f(long)::g"),
            ("(((", "((("),
            ("", ""),
        ] {
            assert_eq!(with_suffixes(text), expected);
        }
    }

    #[test]
    fn names_that_are_not_mangled_or_broken_give_nothing() {
        for name in ["", "_Z", "triton_poi_fused_add_0", "_ZN4vllm", "_Z3fooIi", "_ZzZzZ", "_Z99999999999999999999a"] {
            assert_eq!(demangle(name), None, "{name}");
        }
    }

    #[test]
    fn a_name_that_doubles_with_every_argument_is_given_up() {
        // Each parameter is a type made of the one before, twice: `S_` is `A`, `S0_` is `A<int, int>`, `S1_` is `A<S0_, S0_>`, …
        let mut name = String::from("_Z1f1AIiiE");
        for number in 0..36 {
            let digit = char::from_digit(number, 36).unwrap().to_ascii_uppercase();
            write!(name, "S_IS{digit}_S{digit}_E").unwrap();
        }
        assert_eq!(demangle(&name), None);
    }

    #[test]
    fn a_deep_name_is_given_up_on_a_small_stack() {
        let deep =
            |open: &str, close: &str, count: usize| format!("_Z1f{}i{}", open.repeat(count), close.repeat(count));
        let names =
            [deep("P", "", 60_000), deep("1AI", "E", 10_000), deep("F", "E", 20_000), deep("N1aI", "EE", 9_000)];
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        let threads = thread.spawn(move || names.iter().map(|name| demangle(name)).collect::<Vec<_>>()).unwrap();
        assert!(threads.join().unwrap().iter().all(Option::is_none));
    }
}
