//! What the environment says is installed.
//!
//! Enters: `INFERSPAN_JAEGER` and the like, which `cargo xtask test` sets. Leaves: paths. What is missing is said loudly, since
//! the test that asked passes without it.

use std::path::PathBuf;

/// The program that `variable` names, or `name` on the `PATH`. `None` says on stderr that the test is skipped, unless
/// `INFERSPAN_REQUIRE_BACKENDS` is set (as CI does): then it panics.
pub fn program(variable: &str, name: Option<&str>) -> Option<PathBuf> {
    let named = std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let found = named.or_else(|| {
        let folders = std::env::var_os("PATH")?;
        std::env::split_paths(&folders).map(|folder| folder.join(name.unwrap_or_default())).find(|path| path.is_file())
    });
    if let Some(path) = &found {
        assert!(path.is_file(), "{variable} names {}, which is no file", path.display());
    } else {
        let what = format!("SKIPPED: {variable} is not set; `cargo xtask test` sets it");
        assert!(std::env::var_os("INFERSPAN_REQUIRE_BACKENDS").is_none(), "{what}");
        eprintln!("{what}");
    }
    found
}

/// The folder that `variable` names; `None` as for [`program`].
pub fn folder(variable: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = &named {
        assert!(path.is_dir(), "{variable} names {}, which is no folder", path.display());
    } else {
        let what = format!("SKIPPED: {variable} is not set; `cargo xtask test` sets it");
        assert!(std::env::var_os("INFERSPAN_REQUIRE_BACKENDS").is_none(), "{what}");
        eprintln!("{what}");
    }
    named
}

/// A virtual environment with vLLM in it, and the folder of a model.
#[derive(Debug, Clone)]
pub struct Vllm {
    pub venv: PathBuf,
    pub model: PathBuf,
}

impl Vllm {
    /// Those of `INFERSPAN_VLLM_VENV` and `INFERSPAN_VLLM_MODEL`. `None`, said loudly, when they name none.
    pub fn from_env() -> Option<Self> {
        let find = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists());
        if let (Some(venv), Some(model)) = (find("INFERSPAN_VLLM_VENV"), find("INFERSPAN_VLLM_MODEL")) {
            Some(Self { venv, model })
        } else {
            eprintln!(
                "SKIPPED: INFERSPAN_VLLM_VENV and INFERSPAN_VLLM_MODEL name no vLLM; `cargo xtask test` sets them"
            );
            None
        }
    }
}
