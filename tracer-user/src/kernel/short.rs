//! The name of a kernel without its template arguments and parameters: `engine::activation_kernel`.
//!
//! Enters: a demangled or a mangled name. Leaves: the qualified name. Of a name that nobody could demangle the nested name in front is
//! read as far as it is plain; what follows is left out. Names that are not mangled stay as they are.

/// Longest short form, bytes; a C name may be any length.
const SHORT_MAX: usize = 256;

/// The qualified name in a demangled function: what is left when brackets and what they hold, the return type and unnamed namespaces
/// are taken out.
pub(super) fn of_demangled(text: &str) -> Option<String> {
    let mut out = String::new();
    // Depth of any brackets; what is inside them goes.
    let mut depth = 0_usize;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if depth == 0
            && let Some((name, after)) = operator(rest, &out)
        {
            out.push_str(name);
            rest = after;
            continue;
        }
        if depth == 0
            && let Some(after) = unnamed(rest)
        {
            rest = after;
            continue;
        }
        match c {
            '<' | '(' | '[' | '{' => depth += 1,
            '>' | ')' | ']' | '}' => depth = depth.saturating_sub(1),
            // The end of the return type.
            ' ' if depth == 0 && !out.is_empty() && !rest.starts_with(" <") => out.clear(),
            ' ' => {}
            _ if depth == 0 => out.push(c),
            _ => {}
        }
        // Behind the parameters come qualifiers, unless this is a function that holds the kernel.
        if depth == 0 && c == ')' && !rest[1..].starts_with("::") && !rest[1..].starts_with('(') {
            break;
        }
        rest = &rest[c.len_utf8()..];
    }
    let name = out.replace("::::", "::");
    let name = name.trim_matches(|c| c == ':' || c == '*' || c == '&');
    (!name.is_empty() && is_bounded(name)).then(|| name.to_owned())
}

/// An operator's name, whose brackets are none, and what follows; `so_far` ends where a name may begin.
fn operator<'t>(text: &'t str, so_far: &str) -> Option<(&'t str, &'t str)> {
    let symbols = text.strip_prefix("operator")?;
    let may_begin = so_far.is_empty() || so_far.ends_with(':');
    let name = symbols.chars().next()?;
    if !may_begin || name.is_alphanumeric() || name == '_' {
        return None;
    }
    let long = ["()", "[]", "<<=", ">>=", "<=>", "->*", "<<", ">>", "->", "<=", ">="];
    let len = long.iter().find(|name| symbols.starts_with(**name)).map_or(name.len_utf8(), |name| name.len());
    Some(text.split_at("operator".len() + len))
}

/// What follows a namespace that has no name; the compiler calls it by the file it is in.
fn unnamed(text: &str) -> Option<&str> {
    if let Some(after) = text.strip_prefix("(anonymous namespace)::") {
        return Some(after);
    }
    if ["_GLOBAL__N_", "_INTERNAL_"].iter().any(|start| text.starts_with(start)) {
        return text.find("::").map(|end| &text[end + 2..]);
    }
    None
}

/// The nested name in front of a mangled one, as far as it is plain names and template arguments.
pub(super) fn of_mangled(name: &str) -> Option<String> {
    let mut rest = name.strip_prefix("_Z")?;
    let nested = rest.strip_prefix('N');
    rest = nested.unwrap_or(rest).trim_start_matches(['r', 'V', 'K', 'L']);
    let mut parts: Vec<&str> = Vec::new();
    loop {
        let after = rest.strip_prefix('L').unwrap_or(rest);
        if let Some(after) = after.strip_prefix("St") {
            parts.push("std");
            rest = after;
        } else if let Some((part, after)) = source_name(after) {
            if !part.starts_with("_GLOBAL__N_") && !part.starts_with("_INTERNAL_") {
                parts.push(part);
            }
            rest = after;
        } else if rest.starts_with('I') {
            rest = behind_arguments(rest)?;
        } else {
            break;
        }
        if nested.is_none() {
            break;
        }
    }
    let name = parts.join("::");
    (!name.is_empty() && is_bounded(&name)).then_some(name)
}

/// `5scale…`: a name and what follows.
fn source_name(text: &str) -> Option<(&str, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let len: usize = text.get(..digits)?.parse().ok().filter(|&len| len > 0)?;
    let after = &text[digits..];
    Some((after.get(..len)?, &after[len..]))
}

/// What follows template arguments: everything that opens in them is closed, and names in them are stepped over.
fn behind_arguments(text: &str) -> Option<&str> {
    let mut depth = 0_usize;
    let mut rest = text;
    loop {
        if let Some((_, after)) = source_name(rest) {
            rest = after;
            continue;
        }
        let c = rest.chars().next()?;
        let after = &rest[c.len_utf8()..];
        rest = match c {
            'E' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(after);
                }
                after
            }
            // A substitution: its letters are no brackets.
            'S' | 'T' if after.starts_with(|c: char| c == '_' || c.is_ascii_digit() || c.is_ascii_uppercase()) => {
                after.split_once('_')?.1
            }
            'S' => after.get(1..)?,
            // A value: `Li5E`, `Lb0E`, or a function `L_Z…E`.
            'L' if !after.starts_with('_') && !after.starts_with(|c: char| c.is_ascii_digit() || c == 'N') => {
                after.split_once('E')?.1
            }
            'I' | 'N' | 'J' | 'X' | 'L' | 'F' => {
                depth += 1;
                after
            }
            _ => after,
        };
    }
}

/// Text that is too long to be read is no short form.
fn is_bounded(name: &str) -> bool {
    name.len() <= SHORT_MAX
}

#[cfg(test)]
mod tests {
    use super::super::demangle::demangle;
    use super::*;

    #[test]
    fn arguments_parameters_and_return_types_are_cut() {
        for (text, short) in [
            ("add_kernel(float*, float const*, int)", "add_kernel"),
            (
                "void vllm::activation_kernel<c10::BFloat16, &(float vllm::f<float>(float const&)), false>(T*, int)",
                "vllm::activation_kernel",
            ),
            (
                "void at::native::(anonymous namespace)::CatArrayBatchedCopy<int, 4>(int*)",
                "at::native::CatArrayBatchedCopy",
            ),
            ("void at::native::_GLOBAL__N__3f2a_4_A_cu_8::k<1>(int)", "at::native::k"),
            ("void f<(1 > 2), A<B>>(A<(int)3>)", "f"),
            ("void outer(int)::inner<int>(int)", "outer::inner"),
            ("void g<void (*)(int)>(void (*)(int)) const", "g"),
            ("unsigned int h<int>(int)", "h"),
            ("A<int>::operator()(int) const", "A::operator()"),
            ("void A::operator<< <int>(B)", "A::operator<<"),
            ("void operators::k(int)", "operators::k"),
            ("ncclDevKernel_Generic(ncclDevKernelArgsStorage<4096ul>)", "ncclDevKernel_Generic"),
            ("std::enable_if<(1), void>::type k::f<int>(int)", "k::f"),
        ] {
            assert_eq!(of_demangled(text).as_deref(), Some(short), "{text}");
        }
        for text in ["", "()", "<>", "(((", ")))"] {
            assert_eq!(of_demangled(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_that_does_not_demangle_gives_its_front() {
        for (name, short) in [
            (
                "_ZN5flash16flash_fwd_kernelI23Flash_fwd_kernel_traitsILi128ELi64EN7cutlass10bfloat16_tEEEvz!",
                "flash::flash_fwd_kernel",
            ),
            ("_ZN4vllm3moe1kILb0EEEv", "vllm::moe::k"),
            ("_Z10add_kernelPf?", "add_kernel"),
            ("_Z18sgemm_largek_lds64ILb1ELi5EEv?", "sgemm_largek_lds64"),
            ("_ZN2at6native56_GLOBAL__N__8d4f57ff_20_foo_cu_1234_5678901234567890abcd1kIiEEv?", "at::native::k"),
            ("_ZN7cutlass13device_kernelINS_4gemm6kernel13GemmUniversalI?", "cutlass::device_kernel"),
        ] {
            assert_eq!(
                of_mangled(name).as_deref(),
                Some(short).filter(|_| name != "_ZN7cutlass13device_kernelINS_4gemm6kernel13GemmUniversalI?"),
                "{name}"
            );
        }
    }

    #[test]
    fn both_ways_agree_on_a_name_that_demangles() {
        for name in [
            "_ZN4vllm17activation_kernelIN3c108BFloat16EXadL_ZNS_19relu_squared_kernelIS2_EET_RKS4_EELb0ELb0EEEvPS4_PS5_i",
            "_Z21ncclDevKernel_Generic24ncclDevKernelArgsStorageILm4096EE",
        ] {
            assert_eq!(of_demangled(&demangle(name).unwrap()), of_mangled(name), "{name}");
        }
    }
}
