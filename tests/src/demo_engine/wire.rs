//! The msgpack messages between the API server and the engine, in vLLM 0.32's layout.
//!
//! Both directions are encoded and decoded here: `EngineCoreRequest` (an array of 22), ABORT, UTILITY, and
//! `EngineCoreOutputs` (an array of 9) with `EngineCoreOutput` (18) and the scheduler's statistics. What does not decode is
//! an error: both ends are ours.

use super::value::{Packer, Value};
use super::zmtp::Message;

/// Request types, the first frame of a message on the input socket.
pub const ADD: u8 = 0;
pub const ABORT: u8 = 1;
pub const UTILITY: u8 = 3;

/// vLLM's `FinishReason`.
pub const STOP: u8 = 0;
pub const LENGTH: u8 = 1;

/// vLLM's `EngineCoreEventType`.
pub const QUEUED: u8 = 1;
pub const SCHEDULED: u8 = 2;
pub const PREEMPTED: u8 = 3;

/// An `EngineCoreRequest`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Add {
    pub request_id: String,
    pub external_id: String,
    pub prompt: Vec<u32>,
    /// `None`: a pooling (embedding) request.
    pub sampling: Option<Sampling>,
    /// Unix seconds.
    pub arrival: f64,
    pub client_index: u32,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sampling {
    pub temperature: f64,
    pub max_tokens: u32,
    pub stop: Vec<String>,
    pub ignore_eos: bool,
    /// 1 delta (streaming), 2 final only.
    pub output_kind: u8,
    pub seed: Option<u64>,
}

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

/// A message that does not decode.
#[derive(Debug, thiserror::Error)]
#[error("a message between API server and engine does not decode: {0}")]
pub struct Malformed(pub &'static str);

/// One payload.
fn built(write: impl FnOnce(&mut Packer)) -> Vec<u8> {
    let mut out = Packer::default();
    write(&mut out);
    out.into_bytes()
}

impl Add {
    /// Type frame and payload.
    pub fn encode(&self) -> Message {
        let payload = built(|out| {
            out.array(22);
            out.str(&self.request_id);
            out.array(self.prompt.len());
            for token in &self.prompt {
                out.uint(u64::from(*token));
            }
            out.nil(); // mm_features
            if let Some(sampling) = &self.sampling {
                sampling.encode(out);
                out.nil(); // pooling_params
            } else {
                out.nil();
                write_pooling_params(out);
            }
            out.float(self.arrival);
            out.nils(5); // lora_request … prompt_is_token_ids
            out.uint(u64::from(self.client_index));
            out.uint(0); // current_wave
            out.uint(0); // priority
            out.nil(); // trace_headers
            out.bool(false); // resumable
            out.str(&self.external_id);
            out.nils(2); // reasoning_ended, reasoning_parser_kwargs
            out.bool(false); // abort_immediately
            out.nils(2); // session_id, kv_hints
        });
        vec![vec![ADD], payload]
    }

    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let value = Value::parse(payload)?;
        let fields = value.array().filter(|fields| fields.len() == 22).ok_or(Malformed("no array of 22"))?;
        let prompt = fields[1].array().ok_or(Malformed("prompt_token_ids"))?;
        Ok(Self {
            request_id: fields[0].string().ok_or(Malformed("request_id"))?,
            prompt: prompt.iter().filter_map(|token| token.number().map(|token| token as u32)).collect(),
            sampling: (fields[3] != Value::Nil).then(|| Sampling::decode(&fields[3])),
            arrival: fields[5].number().ok_or(Malformed("arrival_time"))?,
            client_index: fields[11].number().ok_or(Malformed("client_index"))? as u32,
            external_id: fields[16].string().ok_or(Malformed("external_req_id"))?,
        })
    }
}

/// `PoolingParams` is a struct of its own kind: array-like, all fields.
fn write_pooling_params(out: &mut Packer) {
    out.array(10);
    out.nils(4); // use_activation, dimensions, step_tag_id, returned_token_ids
    out.str("embed"); // task
    out.bool(false); // requires_token_ids
    out.bool(false); // skip_reading_prefix_cache
    out.nils(2); // late_interaction_params, extra_kwargs
    out.uint(2); // output_kind: final only
}

impl Sampling {
    fn encode(&self, out: &mut Packer) {
        out.map16(14 + u16::from(self.seed.is_some()));
        for key in ["presence_penalty", "frequency_penalty"] {
            out.str(key);
            out.float(0.0);
        }
        out.str("repetition_penalty");
        out.float(1.0);
        out.str("temperature");
        out.float(self.temperature);
        if let Some(seed) = self.seed {
            out.str("seed");
            out.uint(seed);
        }
        out.str("watermarking");
        out.bool(false);
        out.str("stop");
        out.array(self.stop.len());
        for stop in &self.stop {
            out.str(stop);
        }
        out.str("stop_token_ids");
        out.array(0);
        out.str("ignore_eos");
        out.bool(self.ignore_eos);
        out.str("max_tokens");
        out.uint(u64::from(self.max_tokens));
        out.str("output_kind");
        out.uint(u64::from(self.output_kind));
        out.str("skip_clone");
        out.bool(true);
        out.str("_all_stop_token_ids");
        out.array(1);
        out.uint(u64::from(super::tokenizer::END));
        out.str("bad_words");
        out.array(0);
        out.str("skip_reading_prefix_cache");
        out.bool(false);
    }

    fn decode(value: &Value) -> Self {
        let number = |key| value.get(key).and_then(Value::number);
        Self {
            temperature: number("temperature").unwrap_or(1.0),
            max_tokens: number("max_tokens").unwrap_or(16.0) as u32,
            stop: value
                .get("stop")
                .and_then(Value::array)
                .map_or_else(Vec::new, |stop| stop.iter().filter_map(Value::string).collect()),
            ignore_eos: value.get("ignore_eos") == Some(&Value::Bool(true)),
            output_kind: number("output_kind").unwrap_or(0.0) as u8,
            seed: number("seed").map(|seed| seed as u64),
        }
    }
}

/// ABORT with these ids.
pub fn encode_abort(ids: &[String]) -> Message {
    let payload = built(|out| {
        out.array(ids.len());
        for id in ids {
            out.str(id);
        }
    });
    vec![vec![ABORT], payload]
}

pub fn decode_abort(payload: &[u8]) -> Result<Vec<String>, Malformed> {
    let value = Value::parse(payload)?;
    Ok(value.array().ok_or(Malformed("abort"))?.iter().filter_map(Value::string).collect())
}

/// UTILITY: call `method` without arguments.
pub fn encode_utility(client_index: u32, call_id: u64, method: &str) -> Message {
    let payload = built(|out| {
        out.array(4);
        out.uint(u64::from(client_index));
        out.uint(call_id);
        out.str(method);
        out.array(0);
    });
    vec![vec![UTILITY], payload]
}

/// Client index and call id.
pub fn decode_utility(payload: &[u8]) -> Result<(u32, u64), Malformed> {
    let value = Value::parse(payload)?;
    match value.array() {
        Some([client, Value::Uint(call), ..]) => Ok((client.number().ok_or(Malformed("client_index"))? as u32, *call)),
        _ => Err(Malformed("utility")),
    }
}

/// The engine's first message on the input socket, `EngineCoreReadyResponse`.
pub fn encode_ready(limits: &super::scheduler::Limits) -> Message {
    let payload = built(|out| {
        out.map(11);
        for (key, value) in [
            ("max_model_len", limits.max_model_len),
            ("num_gpu_blocks", limits.blocks),
            ("block_size", limits.block_size),
            ("world_size", 1),
            ("data_parallel_size", 1),
            ("tensor_parallel_size", 1),
            ("pipeline_parallel_size", 1),
            ("data_parallel_rank", 0),
            ("max_num_seqs", limits.max_num_seqs),
        ] {
            out.str(key);
            out.uint(value as u64);
        }
        out.str("dtype");
        out.str("bfloat16");
        out.str("vllm_version");
        out.str("0.32.0");
    });
    vec![payload]
}

impl Outputs {
    /// The payload, and a frame for every array of 256 bytes or more.
    pub fn encode(&self) -> Message {
        let mut tensors = Vec::new();
        let payload = built(|out| {
            out.array(9);
            out.uint(0); // engine_index
            out.array(self.outputs.len());
            for output in &self.outputs {
                output.encode(out, &mut tensors);
            }
            match &self.stats {
                Some(stats) => stats.encode(out),
                None => out.nil(),
            }
            out.float(self.timestamp);
            if let Some(call_id) = self.utility {
                out.array(3);
                out.uint(call_id);
                out.nil();
                out.array(2);
                out.nil();
                out.array(1);
                out.str("generate");
                out.nils(4);
            } else {
                out.nils(4);
                out.str("default"); // weight_version
            }
        });
        let mut message = vec![payload];
        message.extend(tensors);
        message
    }

    pub fn decode(message: &Message) -> Result<Self, Malformed> {
        let value = Value::parse(message.first().ok_or(Malformed("no frame"))?)?;
        let fields = value.array().filter(|fields| fields.len() == 9).ok_or(Malformed("no array of 9"))?;
        Ok(Self {
            outputs: fields[1]
                .array()
                .ok_or(Malformed("outputs"))?
                .iter()
                .map(|output| Output::decode(output, message))
                .collect::<Result<_, _>>()?,
            stats: (fields[2] != Value::Nil).then(|| Stats::decode(&fields[2])),
            timestamp: fields[3].number().ok_or(Malformed("timestamp"))?,
            utility: fields[4].array().and_then(|answer| match answer.first() {
                Some(Value::Uint(call)) => Some(*call),
                _ => None,
            }),
        })
    }
}

impl Output {
    fn encode(&self, out: &mut Packer, tensors: &mut Vec<Vec<u8>>) {
        out.array(18);
        out.str(&self.request_id);
        out.array(self.tokens.len());
        for token in &self.tokens {
            out.uint(u64::from(*token));
        }
        out.nils(2); // new_logprobs, new_prompt_logprobs_tensors
        match &self.embedding {
            None => out.nil(),
            Some(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                out.array(3);
                out.str("float32");
                out.array(1);
                out.uint(values.len() as u64);
                // VLLM_MSGPACK_ZERO_COPY_THRESHOLD: 256 bytes.
                if bytes.len() < 256 {
                    out.extension(3, &bytes);
                } else {
                    tensors.push(bytes);
                    out.uint(tensors.len() as u64);
                }
            }
        }
        match self.finish {
            Some(reason) => out.uint(u64::from(reason)),
            None => out.nil(),
        }
        out.nil(); // stop_reason
        if self.events.is_empty() {
            out.nil();
        } else {
            out.array(self.events.len());
            for (kind, timestamp) in &self.events {
                out.map(2);
                out.str("type");
                out.uint(u64::from(*kind));
                out.str("timestamp");
                out.float(*timestamp);
            }
        }
        out.nils(3); // kv_transfer_params, ec_transfer_params, trace_headers
        match &self.prefill {
            None => out.nil(),
            Some(prefill) => {
                out.map(6);
                for (key, value) in [
                    ("num_prompt_tokens", prefill.prompt_tokens),
                    ("num_computed_tokens", prefill.prompt_tokens - prefill.cached_tokens),
                    ("num_cached_tokens", prefill.cached_tokens),
                    ("num_local_cached_tokens", prefill.cached_tokens),
                    ("num_external_cached_tokens", 0),
                    ("num_cache_creation_tokens", prefill.cache_creation_tokens),
                ] {
                    out.str(key);
                    out.uint(u64::from(value));
                }
            }
        }
        out.nil(); // routed_experts
        out.uint(0); // num_nans_in_logits
        out.nils(4); // mm_cache_miss_hashes … prompt_token_id_logprobs
    }

    fn decode(value: &Value, message: &Message) -> Result<Self, Malformed> {
        let fields = value.array().filter(|fields| fields.len() == 18).ok_or(Malformed("no array of 18"))?;
        let count = |key| fields[11].get(key).and_then(Value::number).unwrap_or(0.0) as u32;
        Ok(Self {
            request_id: fields[0].string().ok_or(Malformed("request_id"))?,
            tokens: fields[1]
                .array()
                .ok_or(Malformed("new_token_ids"))?
                .iter()
                .filter_map(|token| token.number().map(|token| token as u32))
                .collect(),
            embedding: fields[4].array().and_then(|tensor| {
                let bytes = match tensor.get(2)? {
                    Value::Bytes(bytes) => bytes.as_slice(),
                    index => message.get(index.number()? as usize)?,
                };
                Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }),
            finish: fields[5].number().map(|reason| reason as u8),
            events: fields[7].array().map_or_else(Vec::new, |events| {
                events
                    .iter()
                    .filter_map(|event| Some((event.get("type")?.number()? as u8, event.get("timestamp")?.number()?)))
                    .collect()
            }),
            prefill: (fields[11] != Value::Nil).then(|| Prefill {
                prompt_tokens: count("num_prompt_tokens"),
                cached_tokens: count("num_cached_tokens"),
                cache_creation_tokens: count("num_cache_creation_tokens"),
            }),
        })
    }
}

impl Stats {
    fn encode(&self, out: &mut Packer) {
        out.map(18);
        for (key, value) in
            [("num_running_reqs", self.running), ("num_waiting_reqs", self.waiting), ("num_skipped_waiting_reqs", 0)]
        {
            out.str(key);
            out.uint(u64::from(value));
        }
        out.str("num_kv_fetch_reqs_by_stage");
        out.map(3);
        for key in ["waiting_to_start", "in_progress", "completed_waiting"] {
            out.str(key);
            out.uint(0);
        }
        for key in ["step_counter", "current_wave"] {
            out.str(key);
            out.uint(0);
        }
        out.str("kv_cache_usage");
        out.float(self.kv_cache_usage);
        out.str("iteration_details");
        out.nil();
        out.str("prefix_cache_stats");
        out.map(8);
        out.str("reset");
        out.bool(false);
        for (key, value) in [
            ("requests", self.prefix.requests),
            ("queries", self.prefix.queries),
            ("hits", self.prefix.hits),
            ("preempted_requests", self.prefix.preempted_requests),
            ("preempted_queries", self.prefix.preempted_queries),
            ("preempted_hits", self.prefix.preempted_hits),
        ] {
            out.str(key);
            out.uint(u64::from(value));
        }
        out.str("hits_by_source");
        out.map(0);
        out.str("connector_prefix_cache_stats");
        out.nil();
        out.str("kv_cache_eviction_events");
        out.array(0);
        for key in ["spec_decoding_stats", "kv_connector_stats", "ec_connector_stats"] {
            out.str(key);
            out.nil();
        }
        for key in ["waiting_lora_adapters", "running_lora_adapters"] {
            out.str(key);
            out.map(0);
        }
        for key in ["cudagraph_stats", "perf_stats"] {
            out.str(key);
            out.nil();
        }
    }

    fn decode(value: &Value) -> Self {
        let count = |value: &Value, key| value.get(key).and_then(Value::number).unwrap_or(0.0) as u32;
        let prefix = value.get("prefix_cache_stats").unwrap_or(&Value::Nil);
        Self {
            running: count(value, "num_running_reqs"),
            waiting: count(value, "num_waiting_reqs") + count(value, "num_skipped_waiting_reqs"),
            kv_cache_usage: value.get("kv_cache_usage").and_then(Value::number).unwrap_or(0.0),
            prefix: PrefixStats {
                requests: count(prefix, "requests"),
                queries: count(prefix, "queries"),
                hits: count(prefix, "hits"),
                preempted_requests: count(prefix, "preempted_requests"),
                preempted_queries: count(prefix, "preempted_queries"),
                preempted_hits: count(prefix, "preempted_hits"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Frames of one streaming chat on the real vLLM 0.32.0.
    const REAL_ADD: &[u8] = include_bytes!("../../fixtures/captures/frames/v0.32_chat_000_1.bin");
    const REAL_OUTPUTS: [&[u8]; 3] = [
        include_bytes!("../../fixtures/captures/frames/v0.32_chat_001_0.bin"),
        include_bytes!("../../fixtures/captures/frames/v0.32_chat_004_0.bin"),
        include_bytes!("../../fixtures/captures/frames/v0.32_chat_005_0.bin"),
    ];

    #[test]
    fn a_request_is_encoded_as_the_real_api_server_does_it() {
        let add = Add::decode(REAL_ADD).unwrap();
        assert_eq!((add.external_id.as_str(), add.prompt.len()), ("chatcmpl-my-rid-7", 15));
        assert_eq!(add.encode()[1], REAL_ADD);
    }

    #[test]
    fn outputs_are_encoded_as_the_real_engine_does_it() {
        for real in REAL_OUTPUTS {
            let outputs = Outputs::decode(&vec![real.to_vec()]).unwrap();
            assert_eq!(outputs.encode()[0], real);
        }
    }

    #[test]
    fn an_embedding_travels_in_a_frame_of_its_own_when_it_is_large() {
        for len in [8_usize, 128] {
            let output = Output { embedding: Some(vec![0.5; len]), ..Output::default() };
            let outputs = Outputs { outputs: vec![output], ..Outputs::default() };
            let message = outputs.encode();
            assert_eq!(message.len(), if len * 4 < 256 { 1 } else { 2 });
            assert_eq!(Outputs::decode(&message).unwrap(), outputs);
        }
    }
}
