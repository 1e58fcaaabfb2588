//! `EngineCoreOutputs`: what a step gave.

use super::request::keep;
use super::tail;
use crate::decode::msgpack::{Cursor, Stop, Token};
use crate::decode::zmtp::Part;
use crate::engine::FinishReason;
use crate::engine::{EngineMessage, LifeEvent, LifeEventKind, Outputs, RequestOutput, SchedulerStats};

/// Most requests of one message that are read (vLLM's largest max_num_seqs defaults are 1,024).
const MAX_OUTPUTS: u32 = 65_536;
/// Engine indices (data-parallel ranks) from here on are taken for another kind of message; state is kept for each.
const MAX_ENGINES: u32 = 4_096;
/// Most life events of one output that are kept.
const MAX_EVENTS: u32 = 1_024;

/// Reads an output message; `Other` when the shape is not one. Of one that was cut (among its outputs, by far the longest
/// field) statistics and stamp are read from its end.
pub(super) fn outputs(body: &Part) -> EngineMessage {
    let mut cursor = Cursor::new(&body.bytes);
    let mut out = Outputs::default();
    let (fields, requests) = match head(&mut cursor, &mut out) {
        Ok(Some(head)) => head,
        Ok(None) | Err(Stop::Invalid(_)) => return EngineMessage::Other,
        Err(Stop::Truncated(_)) => return EngineMessage::Unreadable,
    };
    match read_outputs(&mut cursor, requests, &mut out)
        .and_then(|known| Ok(known && rest(&mut cursor, fields, &mut out)?))
    {
        Ok(true) => EngineMessage::Outputs(out),
        Err(Stop::Truncated(_)) if body.cut => {
            let behind_outputs = fields.saturating_sub(2);
            if let Some(mut cursor) =
                tail::items_at_end(&body.tail, behind_outputs, |first| matches!(first, Token::Nil | Token::Map(_)))
            {
                out.stats = None;
                // What the tail does not say stays unknown.
                let _ = rest(&mut cursor, fields, &mut out);
            }
            EngineMessage::Outputs(out)
        }
        Ok(false) | Err(_) => EngineMessage::Unreadable,
    }
}

/// Number of fields and of outputs; `None` when the message is another one. Fields 0 to 4 never moved: engine_index, outputs,
/// scheduler_stats, timestamp, utility_output.
fn head(cursor: &mut Cursor<'_>, out: &mut Outputs) -> Result<Option<(u32, u32)>, Stop> {
    let Token::Array(fields) = cursor.token()? else { return Ok(None) };
    let Token::Int(engine) = cursor.token()? else { return Ok(None) };
    let Some(engine) = u32::try_from(engine).ok().filter(|&index| index < MAX_ENGINES) else { return Ok(None) };
    out.engine = engine;
    let Token::Array(n) = cursor.token()? else { return Ok(None) };
    Ok(Some((fields, n)))
}

fn read_outputs(cursor: &mut Cursor<'_>, n: u32, out: &mut Outputs) -> Result<bool, Stop> {
    if n > MAX_OUTPUTS {
        return Ok(false);
    }
    for read in 0..n {
        // Until it is read whole, this one and those after it are missing.
        out.missing = u64::from(n - read);
        if !output(cursor, &mut out.outputs)? {
            return Ok(false);
        }
    }
    out.missing = 0;
    Ok(true)
}

/// What follows the outputs.
fn rest(cursor: &mut Cursor<'_>, fields: u32, out: &mut Outputs) -> Result<bool, Stop> {
    match cursor.token()? {
        Token::Nil => {}
        Token::Map(pairs) => {
            let mut stats = SchedulerStats::default();
            let read = scheduler_stats(cursor, pairs, &mut stats);
            out.stats = Some(stats);
            read?;
        }
        _ => return Ok(false),
    }
    match cursor.token()? {
        Token::Float(at) => out.timestamp = Some(at),
        _ => return Ok(false),
    }
    if fields > 4 {
        out.utility = cursor.peek()? != Token::Nil;
    }
    Ok(true)
}

/// One `EngineCoreOutput`. Appends even when it is cut, with what it holds. `false`: not the shape of one.
fn output(cursor: &mut Cursor<'_>, outputs: &mut Vec<RequestOutput>) -> Result<bool, Stop> {
    let Token::Array(fields) = cursor.token()? else { return Ok(false) };
    let Some(id) = cursor.token()?.as_str().map(keep) else { return Ok(false) };
    let Token::Array(tokens) = cursor.token()? else { return Ok(false) };
    outputs.push(RequestOutput { id, tokens: u64::from(tokens), ..RequestOutput::default() });
    let Some(out) = outputs.last_mut() else { return Ok(false) };
    cursor.skip_items(u64::from(tokens))?;
    // finish_reason is field 4 in 0.8.5 (7 fields), 5 in every later release.
    let finish_index = if fields == 7 { 4 } else { 5 };
    // num_cached_tokens as an integer: field 9 of 10 (0.9 to 0.10.1), field 10 of 11 to 14 (0.10.2 to 0.19).
    let cached_index = match fields {
        10 => Some(9),
        11..=14 => Some(10),
        _ => None,
    };
    for index in 2..fields {
        let token = cursor.token()?;
        match token {
            Token::Int(reason) if index == finish_index => out.finish = Some(finish_reason(reason)),
            Token::Int(n) if Some(index) == cached_index => out.cached_tokens = u64::try_from(n).ok(),
            Token::Array(n) if index > finish_index && out.events.is_empty() => events(cursor, n, &mut out.events)?,
            Token::Map(pairs) => prefill_stats(cursor, pairs, out)?,
            other => cursor.skip_rest(other)?,
        }
    }
    Ok(true)
}

/// vLLM's `FinishReason` (ERROR since 0.13, REPETITION since 0.17).
fn finish_reason(reason: i64) -> FinishReason {
    match reason {
        0 => FinishReason::Stop,
        1 => FinishReason::Length,
        2 => FinishReason::Abort,
        4 => FinishReason::Repetition,
        // 3, and a reason of a later release: over, and not one of those that count as success.
        _ => FinishReason::Error,
    }
}

/// An array is the events when its items are maps with `type` and `timestamp`; anything else is passed.
fn events(cursor: &mut Cursor<'_>, n: u32, out: &mut Vec<LifeEvent>) -> Result<(), Stop> {
    for _ in 0..n {
        let token = cursor.token()?;
        let Token::Map(pairs) = token else {
            cursor.skip_rest(token)?;
            continue;
        };
        let (mut kind, mut at) = (None, None);
        for _ in 0..pairs {
            let key = cursor.token()?;
            let value = cursor.token()?;
            match key.as_str() {
                Some("type") => {
                    kind = match value {
                        Token::Int(1) => Some(LifeEventKind::Queued),
                        Token::Int(2) => Some(LifeEventKind::Scheduled),
                        Token::Int(3) => Some(LifeEventKind::Preempted),
                        _ => None,
                    }
                }
                Some("timestamp") => at = value.as_f64(),
                _ => {}
            }
            cursor.skip_rest(value)?;
        }
        if let (Some(kind), Some(at), true) = (kind, at, out.len() < MAX_EVENTS as usize) {
            out.push(LifeEvent { kind, at });
        }
    }
    Ok(())
}

/// A map with `num_prompt_tokens` is the prefill's; others have none of these keys.
fn prefill_stats(cursor: &mut Cursor<'_>, pairs: u32, out: &mut RequestOutput) -> Result<(), Stop> {
    for _ in 0..pairs {
        let key = cursor.token()?;
        let value = cursor.token()?;
        match key.as_str() {
            Some("num_prompt_tokens") => out.prompt_tokens = value.as_u64(),
            Some("num_cached_tokens") => out.cached_tokens = value.as_u64(),
            _ => {}
        }
        if !matches!(key, Token::Str(_)) {
            // A non-string key is followed by its own items only if it is a container, which no vLLM map has.
            cursor.skip_rest(key)?;
        }
        cursor.skip_rest(value)?;
    }
    Ok(())
}

fn scheduler_stats(cursor: &mut Cursor<'_>, pairs: u32, stats: &mut SchedulerStats) -> Result<(), Stop> {
    for _ in 0..pairs {
        let key = cursor.token()?;
        let value = cursor.token()?;
        match key.as_str() {
            Some("num_running_reqs") => stats.running = value.as_u64().unwrap_or(0),
            // Since 0.20 some of the waiting are counted apart.
            Some("num_waiting_reqs" | "num_skipped_waiting_reqs") => {
                stats.waiting = stats.waiting.saturating_add(value.as_u64().unwrap_or(0));
            }
            // gpu_cache_usage in 0.8.5.
            Some("kv_cache_usage" | "gpu_cache_usage") => stats.kv_cache_usage = value.as_f64().unwrap_or(0.0),
            Some("prefix_cache_stats") => {
                if let Token::Map(inner) = value {
                    prefix_cache_stats(cursor, inner, stats)?;
                    continue;
                }
            }
            _ => {}
        }
        cursor.skip_rest(value)?;
    }
    Ok(())
}

fn prefix_cache_stats(cursor: &mut Cursor<'_>, pairs: u32, stats: &mut SchedulerStats) -> Result<(), Stop> {
    for _ in 0..pairs {
        let key = cursor.token()?;
        let value = cursor.token()?;
        match key.as_str() {
            Some("queries") => stats.prefix_queries = value.as_u64().unwrap_or(0),
            Some("hits") => stats.prefix_hits = value.as_u64().unwrap_or(0),
            _ => {}
        }
        cursor.skip_rest(value)?;
    }
    Ok(())
}
