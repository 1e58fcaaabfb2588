//! A run in a file: all that entered the core of each server, and what the decoders made of it.
//!
//! Enters: [`Entry`]s, as the pipeline took them. Leaves: the same entries, of which the same pipeline makes the same outputs. By default
//! an entry holds what was decoded and no bytes of a stream, so nothing of a prompt, an output, a query or a header's value but trace
//! context and request id; a raw recording holds the bytes, and decodes them again. [`blocks`] is the file's form, [`recorder`] writes one,
//! [`reader`] reads one.

pub mod blocks;
pub mod reader;
pub mod recorder;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::attach::Level;
use crate::core::Answer;
use crate::input::gpu::Gpus;
use crate::input::{Delivered, Input, Lost};

/// What a recording says of itself, before its entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// Who wrote it: version and commit.
    pub writer: String,
    /// How many servers it is of.
    pub servers: u32,
    /// It holds the bytes of the streams.
    pub raw: bool,
    /// The source showed closes and disconnects.
    pub closes_visible: bool,
    /// How much was observed; nothing in recordings from before it was kept.
    pub level: Option<Level>,
    /// `host.name` of what was exported.
    pub host: Option<String>,
    /// `OTEL_RESOURCE_ATTRIBUTES` of what was exported, parsed.
    pub resource: Vec<(String, String)>,
}

/// One thing that happened to the pipeline, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Entry {
    /// The core of a server took this, and its decoders gave these answers. In a recording that is not raw, without its bytes.
    Input {
        server: u32,
        input: Input,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        answers: Vec<Answer>,
    },
    /// The tracer's own account.
    Delivered(Delivered),
    /// What the driver of the machine's GPUs said.
    Gpus(Option<Arc<Gpus>>),
    /// A loss that was counted at the entrance.
    Lost(Lost),
    /// A server's core gave a part of what was open at the end.
    Finish { server: u32 },
    /// So many entries are missing here: the disk did not keep up.
    Missing { entries: u64 },
    /// The recording is whole. `late`: inputs that came too late to be put in order.
    #[serde(rename = "End")]
    Complete { late: u64 },
}
