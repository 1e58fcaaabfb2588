//! `EngineCoreRequest` (ADD) and ABORT.

use super::{ids, tail};
use crate::decode::msgpack::{Cursor, Stop, Token};
use crate::decode::zmtp::Part;
use crate::engine::Add;

/// Longest id that is kept, bytes: a client's `X-Request-Id` is part of it.
const MAX_ID: usize = 512;
/// Wall-clock stamps are later than 2001, monotonic ones and parameters are smaller.
const EARLIEST_WALL_CLOCK: f64 = 1e9;
/// Most ids of one ABORT that are kept.
const MAX_ABORTS: usize = 65_536;

/// Reads an ADD; `None` when not even its id is there. Of one that was cut (inside its prompt, by far the longest field) what
/// stands behind the prompt is read from its end.
pub(super) fn add(body: &Part) -> Option<Add> {
    let mut cursor = Cursor::new(&body.bytes);
    let Token::Array(fields) = cursor.token().ok()? else { return None };
    let mut add = Add { id: keep(cursor.token().ok()?.as_str()?), ..Add::default() };
    if read_fields(&mut cursor, 1..fields, &mut add).is_err() {
        add.cut = true;
        let behind_prompt = fields.saturating_sub(2);
        if let Some(mut cursor) = tail::items_at_end(&body.tail, behind_prompt, |first| {
            // mm_features, or what stood there before: no prompt token is an array or nil.
            matches!(first, Token::Nil | Token::Array(_))
        }) {
            add.cut = read_fields(&mut cursor, 2..fields, &mut add).is_err();
        }
    }
    if add.external_id.is_none() {
        add.external_id = Some(ids::external_of(&add.id).to_owned());
    }
    Some(add)
}

fn read_fields(cursor: &mut Cursor<'_>, fields: std::ops::Range<u32>, add: &mut Add) -> Result<(), Stop> {
    for index in fields {
        let token = cursor.token()?;
        match token {
            // The header alone tells the token count. Index 1 in every release.
            Token::Array(n) if index == 1 => {
                add.prompt_tokens = Some(u64::from(n));
                cursor.skip_items(u64::from(n))?;
            }
            Token::Float(at) if at > EARLIEST_WALL_CLOCK && add.arrival.is_none() => {
                add.arrival = Some(at);
                // Index 5 from 0.17 on, when the stamp moved before rendering and tokenising; 6 to 8 before.
                add.arrival_before_tokenizing = index == 5;
            }
            Token::Str(raw) => {
                // external_req_id moves; it is the last top-level string that the engine's id starts with.
                if let Ok(text) = std::str::from_utf8(raw)
                    && !text.is_empty()
                    && ids::split_child(&add.id).1.starts_with(text)
                {
                    add.external_id = Some(keep(text));
                }
            }
            Token::Map(n) => read_map(cursor, n, add)?,
            other => cursor.skip_rest(other)?,
        }
    }
    Ok(())
}

/// sampling_params and trace_headers, told by their keys.
fn read_map(cursor: &mut Cursor<'_>, pairs: u32, add: &mut Add) -> Result<(), Stop> {
    for _ in 0..pairs {
        let key = cursor.token()?;
        let value = cursor.token()?;
        match key.as_str() {
            Some("max_tokens") => add.max_tokens = value.as_u64(),
            Some("temperature") => add.temperature = value.as_f64(),
            Some("top_p") => add.top_p = value.as_f64(),
            Some("seed") => add.seed = value.as_u64().and_then(|n| i64::try_from(n).ok()),
            // The second is its name in older releases.
            Some("structured_outputs" | "guided_decoding") => add.structured_output = !matches!(value, Token::Nil),
            Some("traceparent") => add.traceparent = value.as_str().map(keep),
            _ => {}
        }
        cursor.skip_rest(value)?;
        if !matches!(key, Token::Str(_)) {
            cursor.skip_rest(key)?;
        }
    }
    Ok(())
}

/// Reads an ABORT: a list of ids (a cut one gives those before the cut).
pub(super) fn abort(body: &[u8]) -> Vec<String> {
    let mut cursor = Cursor::new(body);
    let mut out = Vec::new();
    match cursor.token() {
        Ok(Token::Array(n)) => {
            for _ in 0..(n as usize).min(MAX_ABORTS) {
                let Ok(token) = cursor.token() else { break };
                if let Some(id) = token.as_str() {
                    out.push(keep(id));
                } else if cursor.skip_rest(token).is_err() {
                    break;
                }
            }
        }
        Ok(token) => out.extend(token.as_str().map(keep)),
        Err(_) => {}
    }
    out
}

pub(super) fn keep(id: &str) -> String {
    id.chars().take(MAX_ID).collect()
}
