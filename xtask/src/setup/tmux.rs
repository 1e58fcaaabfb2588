//! tmux, a terminal for tests of what is drawn on one.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::apt;
use crate::shell;

/// The program, installed unless there is one.
pub(crate) fn ensure() -> Result<PathBuf> {
    if shell::find_on_path("tmux").is_none() {
        apt::install(&["tmux"])?;
    }
    shell::find_on_path("tmux").context("tmux is installed, and not on PATH")
}
