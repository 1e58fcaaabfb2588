//! What a process of a server can be, in words that every engine shares.

use crate::input::Role;

/// How a process was started, as far as its command line tells; the words behind belong to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invocation<'a> {
    /// A program of its own: the last part of its path.
    Binary(&'a str, &'a [&'a str]),
    /// `python -m MODULE`.
    Module(&'a str, &'a [&'a str]),
    /// `python SCRIPT`.
    Script(&'a str, &'a [&'a str]),
}

/// What a process is, as far as its command line tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Starts a server.
    Launcher(Launch),
    /// An HTTP front end that is a program of its own, below its launcher.
    FrontEnd,
    /// A Python process that `multiprocessing` spawned or forked from its server.
    Spawned,
    /// `multiprocessing`'s own processes, which carry nothing.
    Plumbing,
    /// Some other Python process.
    Python,
    Other,
}

/// What a server's command line says; every other word of it is dropped, because it may hold keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launch {
    /// The engine's name.
    pub engine: &'static str,
    pub model: Option<String>,
    pub served_names: Vec<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    /// Only engines, no HTTP.
    pub headless: bool,
    /// Speaks TLS.
    pub tls: bool,
}

impl Launch {
    /// The name that clients use: the first served name, else the model as given.
    pub fn served_model(&self) -> Option<&str> {
        self.served_names.first().or(self.model.as_ref()).map(String::as_str)
    }
}

/// What a process's title says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Title {
    pub role: Role,
    /// API server number, or data-parallel rank.
    pub index: Option<u32>,
    /// A worker's place among the workers of its engine (`PP0_TP1`); empty elsewhere.
    pub rank: String,
}

/// The last part of a path.
pub fn basename(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
