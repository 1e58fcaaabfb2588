//! What comes from the engine: its READY, and outputs with statistics after every step.

use rmpv::Value;

use super::{Malformed, fields, map, packed, parse, text, tokens};
use crate::scheduler::Limits;
use crate::zmtp::Message;

/// VLLM_MSGPACK_ZERO_COPY_THRESHOLD: an array of so many bytes leaves in a frame of its own.
const OWN_FRAME: usize = 256;
/// msgspec's extension type of an array that is not in a frame of its own.
const RAW_VIEW: i8 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prefill {
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub cache_creation_tokens: u32,
}

/// An `EngineCoreOutput`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Output {
    pub request_id: String,
    pub tokens: Vec<u32>,
    pub embedding: Option<Vec<f32>>,
    pub finish: Option<u8>,
    /// Type and `CLOCK_MONOTONIC` seconds.
    pub events: Vec<(u8, f64)>,
    pub prefill: Option<Prefill>,
}

/// `SchedulerStats`, as far as it is ever non-trivial here.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stats {
    pub running: u32,
    pub waiting: u32,
    pub kv_cache_usage: f64,
    pub prefix: PrefixStats,
}

/// Deltas since the previous message, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrefixStats {
    pub requests: u32,
    pub queries: u32,
    pub hits: u32,
    pub preempted_requests: u32,
    pub preempted_queries: u32,
    pub preempted_hits: u32,
}

/// An `EngineCoreOutputs`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outputs {
    pub outputs: Vec<Output>,
    pub stats: Option<Stats>,
    /// `CLOCK_MONOTONIC` seconds.
    pub timestamp: f64,
    /// Call id of an answered utility call.
    pub utility: Option<u64>,
}

/// The engine's first message on the input socket, `EngineCoreReadyResponse`.
pub fn encode_ready(limits: &Limits) -> Message {
    vec![packed(map([
        ("max_model_len", limits.max_model_len.into()),
        ("num_gpu_blocks", limits.blocks.into()),
        ("block_size", limits.block_size.into()),
        ("world_size", 1.into()),
        ("data_parallel_size", 1.into()),
        ("tensor_parallel_size", 1.into()),
        ("pipeline_parallel_size", 1.into()),
        ("data_parallel_rank", 0.into()),
        ("max_num_seqs", limits.max_num_seqs.into()),
        ("dtype", "bfloat16".into()),
        ("vllm_version", "0.32.0".into()),
    ]))]
}

impl Outputs {
    /// The payload, and a frame for every array of 256 bytes or more.
    pub fn encode(&self) -> Message {
        let mut tensors = Vec::new();
        let outputs: Value = self.outputs.iter().map(|output| output.encode(&mut tensors)).collect();
        let answer = self.utility.map(|call_id| {
            let result = Value::Array(vec![Value::Nil, Value::Array(vec!["generate".into()])]);
            Value::Array(vec![call_id.into(), Value::Nil, result])
        });
        // weight_version
        let version = if answer.is_some() { Value::Nil } else { "default".into() };
        let payload = packed(vec![
            0.into(), // engine_index
            outputs,
            self.stats.as_ref().map_or(Value::Nil, Stats::encode),
            self.timestamp.into(),
            answer.unwrap_or(Value::Nil),
            Value::Nil,
            Value::Nil,
            Value::Nil,
            version,
        ]);
        [vec![payload], tensors].concat()
    }

    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        let value = parse(message.first().ok_or(Malformed("no frame"))?)?;
        let fields = fields(&value, 9, "no array of 9")?;
        let outputs = fields[1].as_array().ok_or(Malformed("outputs"))?;
        Ok(Self {
            outputs: outputs.iter().map(|output| Output::decode(output, message)).collect::<Result<_, _>>()?,
            stats: (!fields[2].is_nil()).then(|| Stats::decode(&fields[2])),
            timestamp: fields[3].as_f64().ok_or(Malformed("timestamp"))?,
            utility: fields[4].as_array().and_then(|answer| answer.first()?.as_u64()),
        })
    }
}

impl Output {
    fn encode(&self, tensors: &mut Vec<Vec<u8>>) -> Value {
        let events = self
            .events
            .iter()
            .map(|(kind, timestamp)| map([("type", (*kind).into()), ("timestamp", (*timestamp).into())]));
        Value::Array(vec![
            self.request_id.as_str().into(),
            self.tokens.iter().copied().collect(),
            Value::Nil, // new_logprobs
            Value::Nil, // new_prompt_logprobs_tensors
            self.embedding.as_ref().map_or(Value::Nil, |values| tensor(values, tensors)),
            self.finish.map_or(Value::Nil, Value::from),
            Value::Nil, // stop_reason
            if self.events.is_empty() { Value::Nil } else { events.collect() },
            Value::Nil, // kv_transfer_params
            Value::Nil, // ec_transfer_params
            Value::Nil, // trace_headers
            self.prefill.as_ref().map_or(Value::Nil, Prefill::encode),
            Value::Nil, // routed_experts
            0.into(),   // num_nans_in_logits
            Value::Nil, // mm_cache_miss_hashes
            Value::Nil,
            Value::Nil,
            Value::Nil, // prompt_token_id_logprobs
        ])
    }

    fn decode(value: &Value, message: &Message) -> Result<Self, Malformed> {
        let fields = fields(value, 18, "no array of 18")?;
        let event = |event: &Value| Some((event["type"].as_f64()? as u8, event["timestamp"].as_f64()?));
        Ok(Self {
            request_id: text(&fields[0]).ok_or(Malformed("request_id"))?,
            tokens: tokens(&fields[1]).ok_or(Malformed("new_token_ids"))?,
            embedding: fields[4].as_array().and_then(|tensor| {
                let bytes = match tensor.get(2)? {
                    Value::Ext(_, bytes) => bytes.as_slice(),
                    index => message.get(index.as_f64()? as usize)?,
                };
                Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }),
            finish: fields[5].as_f64().map(|reason| reason as u8),
            events: fields[7].as_array().into_iter().flatten().filter_map(event).collect(),
            prefill: (!fields[11].is_nil()).then(|| Prefill::decode(&fields[11])),
        })
    }
}

/// An array of one dimension; one that is large goes to `tensors`, and its place there is written.
fn tensor(values: &[f32], tensors: &mut Vec<Vec<u8>>) -> Value {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let data = if bytes.len() < OWN_FRAME {
        Value::Ext(RAW_VIEW, bytes)
    } else {
        tensors.push(bytes);
        tensors.len().into()
    };
    Value::Array(vec!["float32".into(), Value::Array(vec![values.len().into()]), data])
}

/// The number under `key`, 0 when there is none.
fn count(value: &Value, key: &str) -> u32 {
    value[key].as_f64().unwrap_or(0.0) as u32
}

impl Prefill {
    fn encode(&self) -> Value {
        map([
            ("num_prompt_tokens", self.prompt_tokens.into()),
            ("num_computed_tokens", (self.prompt_tokens - self.cached_tokens).into()),
            ("num_cached_tokens", self.cached_tokens.into()),
            ("num_local_cached_tokens", self.cached_tokens.into()),
            ("num_external_cached_tokens", 0.into()),
            ("num_cache_creation_tokens", self.cache_creation_tokens.into()),
        ])
    }

    fn decode(value: &Value) -> Self {
        Self {
            prompt_tokens: count(value, "num_prompt_tokens"),
            cached_tokens: count(value, "num_cached_tokens"),
            cache_creation_tokens: count(value, "num_cache_creation_tokens"),
        }
    }
}

impl Stats {
    fn encode(&self) -> Value {
        let stages = ["waiting_to_start", "in_progress", "completed_waiting"];
        map([
            ("num_running_reqs", self.running.into()),
            ("num_waiting_reqs", self.waiting.into()),
            ("num_skipped_waiting_reqs", 0.into()),
            ("num_kv_fetch_reqs_by_stage", map(stages.map(|stage| (stage, 0.into())))),
            ("step_counter", 0.into()),
            ("current_wave", 0.into()),
            ("kv_cache_usage", self.kv_cache_usage.into()),
            ("iteration_details", Value::Nil),
            ("prefix_cache_stats", self.prefix.encode()),
            ("connector_prefix_cache_stats", Value::Nil),
            ("kv_cache_eviction_events", Value::Array(Vec::new())),
            ("spec_decoding_stats", Value::Nil),
            ("kv_connector_stats", Value::Nil),
            ("ec_connector_stats", Value::Nil),
            ("waiting_lora_adapters", map([])),
            ("running_lora_adapters", map([])),
            ("cudagraph_stats", Value::Nil),
            ("perf_stats", Value::Nil),
        ])
    }

    fn decode(value: &Value) -> Self {
        Self {
            running: count(value, "num_running_reqs"),
            waiting: count(value, "num_waiting_reqs").saturating_add(count(value, "num_skipped_waiting_reqs")),
            kv_cache_usage: value["kv_cache_usage"].as_f64().unwrap_or(0.0),
            prefix: PrefixStats::decode(&value["prefix_cache_stats"]),
        }
    }
}

impl PrefixStats {
    fn encode(self) -> Value {
        map([
            ("reset", false.into()),
            ("requests", self.requests.into()),
            ("queries", self.queries.into()),
            ("hits", self.hits.into()),
            ("preempted_requests", self.preempted_requests.into()),
            ("preempted_queries", self.preempted_queries.into()),
            ("preempted_hits", self.preempted_hits.into()),
            ("hits_by_source", map([])),
        ])
    }

    fn decode(value: &Value) -> Self {
        Self {
            requests: count(value, "requests"),
            queries: count(value, "queries"),
            hits: count(value, "hits"),
            preempted_requests: count(value, "preempted_requests"),
            preempted_queries: count(value, "preempted_queries"),
            preempted_hits: count(value, "preempted_hits"),
        }
    }
}
