//! What a person reads instead of a device name.
//!
//! Enters: a device name. Leaves: its forms and its class. Nothing is looked up: the same name gives the same forms everywhere.

use super::class::{self, Class};
use super::{demangle, short};

/// A kernel's name in all its forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// As it was registered.
    pub name: String,
    /// With types and parameters; the name itself where it is not mangled or does not demangle.
    pub demangled: String,
    /// Without them: `vllm::activation_kernel`.
    pub short: String,
    pub class: Class,
}

impl Kernel {
    pub fn named(name: &str) -> Self {
        let (demangled, short) = if demangle::is_mangled(name) {
            let demangled = demangle::demangle(name);
            let short = demangled.as_deref().and_then(short::of_demangled).or_else(|| short::of_mangled(name));
            (demangled, short)
        } else {
            (None, None)
        };
        let demangled = demangled.unwrap_or_else(|| name.to_owned());
        let short = short.unwrap_or_else(|| name.to_owned());
        let class = class::of(&short, &demangled);
        Self { name: name.to_owned(), demangled, short, class }
    }
}
