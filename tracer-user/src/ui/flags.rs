//! The flag that says where the live view is served; the verbs that have one share it.

use std::io::IsTerminal as _;

use crate::export::flags::OutputArgs;

/// A free port of loopback.
const ANY: &str = "127.0.0.1:0";
const OFF: &str = "off";

#[derive(Debug, Clone, Default, clap::Args)]
pub struct UiArgs {
    /// Serve the live view, and Jaeger's query API, on ADDR (host:port or port, 0 is a free one; loopback unless a host is given)
    ///
    /// In a terminal and without other outputs, `attach` serves it on a free port of loopback; `off` keeps it from that.
    #[arg(long, value_name = "ADDR|off")]
    pub ui: Option<String>,
}

impl UiArgs {
    /// The address that was asked for.
    pub fn address(&self) -> Option<&str> {
        self.ui.as_deref().filter(|address| *address != OFF)
    }

    /// As [`Self::address`]; where nothing was said, whoever watches a terminal and asked for no other output gets a view.
    pub fn address_or_any(&self, outputs: &OutputArgs) -> Option<&str> {
        let is_watched = || std::io::stdout().is_terminal() && !outputs.has_any();
        if self.ui.is_none() && is_watched() { Some(ANY) } else { self.address() }
    }
}
