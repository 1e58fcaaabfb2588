//! What goes to the engine: ADD, ABORT, UTILITY.

use rmp::Marker;
use rmpv::Value;

use super::{ABORT, ADD, Malformed, UTILITY, fields, packed, parse, text, tokens, write};
use crate::tokenizer::END;
use crate::zmtp::Message;

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

impl Add {
    /// Type frame and payload.
    pub fn encode(&self) -> Message {
        let mut payload = Vec::new();
        rmp::encode::write_array_len(&mut payload, 22).expect("a vector takes every byte");
        write(&mut payload, self.request_id.as_str());
        write(&mut payload, self.prompt.iter().copied().collect::<Value>());
        write(&mut payload, Value::Nil); // mm_features
        if let Some(sampling) = &self.sampling {
            sampling.write(&mut payload);
            write(&mut payload, Value::Nil); // pooling_params
        } else {
            write(&mut payload, Value::Nil);
            write(&mut payload, pooling_params());
        }
        for field in [
            self.arrival.into(),
            Value::Nil, // lora_request
            Value::Nil,
            Value::Nil,
            Value::Nil,
            Value::Nil, // prompt_is_token_ids
            self.client_index.into(),
            0.into(),     // current_wave
            0.into(),     // priority
            Value::Nil,   // trace_headers
            false.into(), // resumable
            self.external_id.as_str().into(),
            Value::Nil,   // reasoning_ended
            Value::Nil,   // reasoning_parser_kwargs
            false.into(), // abort_immediately
            Value::Nil,   // session_id
            Value::Nil,   // kv_hints
        ] {
            write(&mut payload, field);
        }
        vec![vec![ADD], payload]
    }

    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let value = parse(payload)?;
        let fields = fields(&value, 22, "no array of 22")?;
        Ok(Self {
            request_id: text(&fields[0]).ok_or(Malformed("request_id"))?,
            prompt: tokens(&fields[1]).ok_or(Malformed("prompt_token_ids"))?,
            sampling: (!fields[3].is_nil()).then(|| Sampling::decode(&fields[3])),
            arrival: fields[5].as_f64().ok_or(Malformed("arrival_time"))?,
            client_index: fields[11].as_f64().ok_or(Malformed("client_index"))? as u32,
            external_id: text(&fields[16]).ok_or(Malformed("external_req_id"))?,
        })
    }
}

/// `PoolingParams` is a struct of its own kind: array-like, all fields.
fn pooling_params() -> Value {
    Value::Array(vec![
        Value::Nil,     // use_activation
        Value::Nil,     // dimensions
        Value::Nil,     // step_tag_id
        Value::Nil,     // returned_token_ids
        "embed".into(), // task
        false.into(),   // requires_token_ids
        false.into(),   // skip_reading_prefix_cache
        Value::Nil,     // late_interaction_params
        Value::Nil,     // extra_kwargs
        2.into(),       // output_kind: final only
    ])
}

impl Sampling {
    fn write(&self, out: &mut Vec<u8>) {
        let mut entries: Vec<(&str, Value)> = vec![
            ("presence_penalty", 0.0.into()),
            ("frequency_penalty", 0.0.into()),
            ("repetition_penalty", 1.0.into()),
            ("temperature", self.temperature.into()),
        ];
        entries.extend(self.seed.map(|seed| ("seed", seed.into())));
        entries.extend([
            ("watermarking", false.into()),
            ("stop", self.stop.iter().map(String::as_str).collect()),
            ("stop_token_ids", Value::Array(Vec::new())),
            ("ignore_eos", self.ignore_eos.into()),
            ("max_tokens", self.max_tokens.into()),
            ("output_kind", self.output_kind.into()),
            ("skip_clone", true.into()),
            ("_all_stop_token_ids", Value::Array(vec![END.into()])),
            ("bad_words", Value::Array(Vec::new())),
            ("skip_reading_prefix_cache", false.into()),
        ]);
        // msgspec does not know the size beforehand where it leaves defaults out, and takes the long form.
        out.push(Marker::Map16.to_u8());
        out.extend((entries.len() as u16).to_be_bytes());
        for (key, value) in entries {
            write(out, key);
            write(out, value);
        }
    }

    /// What is missing is vLLM's default.
    fn decode(value: &Value) -> Self {
        Self {
            temperature: value["temperature"].as_f64().unwrap_or(1.0),
            max_tokens: value["max_tokens"].as_f64().unwrap_or(16.0) as u32,
            stop: value["stop"].as_array().into_iter().flatten().filter_map(text).collect(),
            ignore_eos: value["ignore_eos"] == Value::Boolean(true),
            output_kind: value["output_kind"].as_f64().unwrap_or(0.0) as u8,
            seed: value["seed"].as_f64().map(|seed| seed as u64),
        }
    }
}

/// ABORT with these ids.
pub fn encode_abort(ids: &[String]) -> Message {
    vec![vec![ABORT], packed(ids.iter().map(String::as_str).collect::<Value>())]
}

pub fn decode_abort(payload: &[u8]) -> Result<Vec<String>, Malformed> {
    Ok(parse(payload)?.as_array().ok_or(Malformed("abort"))?.iter().filter_map(text).collect())
}

/// UTILITY: call `method` without arguments.
pub fn encode_utility(client_index: u32, call_id: u64, method: &str) -> Message {
    let call = vec![client_index.into(), call_id.into(), method.into(), Value::Array(Vec::new())];
    vec![vec![UTILITY], packed(call)]
}

/// Client index and call id.
pub fn decode_utility(payload: &[u8]) -> Result<(u32, u64), Malformed> {
    let value = parse(payload)?;
    let [client, call, ..] = value.as_array().map_or(&[][..], Vec::as_slice) else { return Err(Malformed("utility")) };
    Ok((client.as_f64().ok_or(Malformed("client_index"))? as u32, call.as_u64().ok_or(Malformed("utility"))?))
}
