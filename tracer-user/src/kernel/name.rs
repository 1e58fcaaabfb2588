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
    /// Without them: `engine::activation_kernel`.
    pub short: String,
    pub class: Class,
}

impl Kernel {
    pub fn named(name: &str) -> Self {
        let demangled = demangle::demangle(name);
        let short = match &demangled {
            Some(demangled) => short::of_demangled(demangled).or_else(|| short::of_mangled(name)),
            // nvcc puts the file's name before that of a static function.
            None => local(name).and_then(|inner| {
                demangle::demangle(inner).as_deref().and_then(short::of_demangled).or_else(|| short::of_mangled(inner))
            }),
        };
        let demangled = demangled.unwrap_or_else(|| name.to_owned());
        let short = short.unwrap_or_else(|| name.to_owned());
        let class = class::of(&short, &demangled);
        Self { name: name.to_owned(), demangled, short, class }
    }
}

/// The mangled name in a name, from where it starts: `_Z…`, or `__nv_static_<length>_<file>__Z…`.
fn local(name: &str) -> Option<&str> {
    if demangle::is_mangled(name) {
        return Some(name);
    }
    let rest = name.strip_prefix("__nv_static_")?;
    let (length, rest) = rest.split_once('_')?;
    let file: usize = length.parse().ok()?;
    rest.get(file..)?.strip_prefix('_').filter(|name| demangle::is_mangled(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mangled_name_has_all_its_forms() {
        let name = "_ZN4vllm17activation_kernelIN3c108BFloat16EXadL_ZNS_19relu_squared_kernelIS2_EET_RKS4_EELb0ELb0EEEvPS4_PS5_i";
        let kernel = Kernel::named(name);
        assert_eq!((kernel.name.as_str(), kernel.short.as_str()), (name, "vllm::activation_kernel"));
        assert!(kernel.demangled.contains("relu_squared_kernel"));
        assert_eq!(kernel.class, Class::Activation);
    }

    #[test]
    fn a_plain_name_stays_as_it_is() {
        for name in ["_fwd_kernel", "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n", "", "_Z", "\u{1b}[2J"] {
            let kernel = Kernel::named(name);
            assert_eq!((kernel.demangled.as_str(), kernel.short.as_str()), (name, name));
        }
    }

    #[test]
    fn a_static_function_is_called_by_its_own_name() {
        let name = "__nv_static_12__1a2b_3_x_cu__ZN36_GLOBAL__N__1a2b_3_x_cu_0123456789ab13oneRankReduceIfEEvPvS1_m";
        let kernel = Kernel::named(name);
        assert_eq!((kernel.demangled.as_str(), kernel.short.as_str()), (name, "oneRankReduce"));
        assert_eq!(Kernel::named("__nv_static_99__x__Z1fv").short, "__nv_static_99__x__Z1fv", "no such file");
    }
}
