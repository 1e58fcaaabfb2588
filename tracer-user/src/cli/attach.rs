//! `inferspan attach` (under construction)

use crate::exit::Code;

#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: &Args) -> anyhow::Result<Code> {
    Ok(Code::Unsupported)
}
