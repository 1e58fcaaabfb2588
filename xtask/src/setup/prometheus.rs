//! Prometheus and promtool, from Debian's package: what is installed, else unpacked into the cache (no service is started).

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::apt;
use crate::{cache, shell};

/// Debian 12's version, which only names the folder.
const VERSION: &str = "2.42.0";

pub(crate) struct Prometheus {
    pub server: PathBuf,
    pub promtool: PathBuf,
}

pub(crate) fn ensure() -> Result<Prometheus> {
    if let (Some(server), Some(promtool)) = (shell::find_on_path("prometheus"), shell::find_on_path("promtool")) {
        return Ok(Prometheus { server, promtool });
    }
    let part = cache::Part::new(&format!("prometheus-{VERSION}"), "Debian package prometheus, unpacked\n")?;
    let folder = part.ensure(|folder| {
        apt::unpack(&["prometheus"], apt::Source::System, folder)?;
        for name in ["prometheus", "promtool"] {
            if !folder.join("usr/bin").join(name).is_file() {
                bail!("Debian's package prometheus holds no usr/bin/{name}");
            }
        }
        Ok(())
    })?;
    Ok(Prometheus { server: folder.join("usr/bin/prometheus"), promtool: folder.join("usr/bin/promtool") })
}
