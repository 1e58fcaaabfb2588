//! placeholder
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class { Other }
impl Class { pub fn name(self) -> &'static str { "other" } }
pub(super) fn of(_short: &str, _demangled: &str) -> Class { Class::Other }
