//! What a request's body asks for.
//!
//! Enters: the bytes of the body and its gaps, as they come. Leaves: [`RequestFields`]. Clients put the long part first and
//! the parameters last, so after a gap the body's last bytes are kept and read when its end is known. Invariant: a field is
//! what a full parse would give, or absent. Never keeps a prompt.

use serde::{Deserialize, Serialize};

use super::scan::{Place, Scanner, Token};
use super::tail::{Window, read_tail};

/// Bytes after a gap that are kept for the parameters at the end.
const TAIL: usize = 16 * 1024;

/// What a request asks for. An absent field is known to be absent only when [`Self::whole`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// `max_completion_tokens`, `max_tokens` or `max_output_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The prompt came as token ids, so nothing is tokenised.
    pub prompt_is_tokens: bool,
    /// Every byte of the body was seen, and it was an object of JSON or empty: a field that is absent was not sent.
    pub whole: bool,
}

impl RequestFields {
    /// Reads a body that is at hand; stops quietly where it is cut or is not JSON.
    pub fn read(bytes: &[u8]) -> Self {
        let mut body = RequestBody::default();
        body.push(bytes);
        body.finish()
    }
}

/// A request body as it comes.
#[derive(Debug)]
pub struct RequestBody {
    scanner: Scanner,
    reading: Reading,
    /// What follows the last gap.
    tail: Window,
    cut: bool,
}

impl Default for RequestBody {
    fn default() -> Self {
        Self { scanner: Scanner::default(), reading: Reading::default(), tail: Window::new(TAIL), cut: false }
    }
}

impl RequestBody {
    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.cut {
            self.tail.push(bytes);
        } else {
            let reading = &mut self.reading;
            self.scanner.push(bytes, &mut |place, token| reading.take(place, token));
        }
    }

    /// Bytes are missing here. Nothing is held of what came before.
    pub fn gap(&mut self) {
        self.cut = true;
        self.scanner = Scanner::default();
        self.tail.clear();
    }

    /// The fields, at the body's end (or where it is given up).
    pub fn finish(mut self) -> RequestFields {
        if self.cut {
            // A value that the gap interrupted must not go on in the tail.
            self.reading.deciding = false;
            let reading = &mut self.reading;
            read_tail(self.tail.bytes(), &mut |place, token| reading.take(place, token));
        } else {
            self.reading.fields.whole = self.scanner.is_over() || self.scanner.is_untouched();
        }
        self.reading.fields
    }

    pub fn held_bytes(&self) -> usize {
        self.scanner.held_bytes() + self.tail.held_bytes()
    }
}

#[derive(Debug, Default)]
struct Reading {
    fields: RequestFields,
    /// In the prompt's array, before its first element: that tells what it is made of.
    deciding: bool,
    /// The limit came from `max_completion_tokens`, which is preferred.
    preferred_limit: bool,
}

impl Reading {
    fn take(&mut self, place: Place<'_>, token: Token<'_>) {
        if self.deciding {
            // Arrays of arrays are several prompts.
            self.deciding = token == Token::Begins(b'[');
            self.fields.prompt_is_tokens |= matches!(token, Token::Begins(b'0'..=b'9'));
            return;
        }
        if place.depth != 1 {
            return;
        }
        let fields = &mut self.fields;
        if let Token::Begins(byte) = token {
            self.deciding = byte == b'[' && matches!(place.key, "prompt" | "input" | "prompt_token_ids");
            return;
        }
        match place.key {
            "model" => fields.model = token.text(),
            "stream" => fields.stream = token.truth(),
            "max_completion_tokens" => {
                self.preferred_limit = token.unsigned().is_some();
                fields.max_tokens = token.unsigned().or(fields.max_tokens);
            }
            "max_tokens" | "max_output_tokens" if !self.preferred_limit => {
                fields.max_tokens = token.unsigned().or(fields.max_tokens);
            }
            "n" => fields.n = token.unsigned(),
            "temperature" => fields.temperature = token.float(),
            "top_p" => fields.top_p = token.float(),
            "seed" => fields.seed = token.signed(),
            "request_id" => fields.request_id = token.text(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    /// `body` without the bytes from `gap.0` to `gap.1`, in calls of `step` bytes.
    fn read(body: &[u8], step: usize, gap: Option<(usize, usize)>) -> RequestFields {
        let mut reader = RequestBody::default();
        let (head, tail) = gap.map_or((body, &b""[..]), |(from, to)| (&body[..from], &body[to..]));
        head.chunks(step).for_each(|bytes| reader.push(bytes));
        assert!(reader.held_bytes() < 2_048, "nothing is kept before a gap");
        if gap.is_some() {
            reader.gap();
        }
        tail.chunks(step).for_each(|bytes| reader.push(bytes));
        reader.finish()
    }

    /// What a full parse says.
    fn oracle(body: &[u8]) -> RequestFields {
        let value: Value = serde_json::from_slice(body).unwrap();
        let number = |key: &str| value[key].as_u64();
        RequestFields {
            model: value["model"].as_str().map(str::to_owned),
            stream: value["stream"].as_bool(),
            max_tokens: number("max_completion_tokens").or(number("max_tokens")).or(number("max_output_tokens")),
            n: number("n"),
            temperature: value["temperature"].as_f64(),
            top_p: value["top_p"].as_f64(),
            seed: value["seed"].as_i64(),
            request_id: value["request_id"].as_str().map(str::to_owned),
            prompt_is_tokens: value["prompt"][0].is_number() || value["prompt"][0][0].is_number(),
            whole: true,
        }
    }

    #[test]
    fn fields_before_a_cut_are_given_and_the_body_is_not_whole() {
        let body = br#"{"model":"tiny","stream":true,"max_tokens":4,"messages":[{"role":"user","content":"hel"#;
        let fields = RequestFields::read(body);
        assert_eq!(fields.model.as_deref(), Some("tiny"));
        assert_eq!((fields.stream, fields.max_tokens, fields.whole), (Some(true), Some(4), false));
    }

    #[test]
    fn a_prompt_of_token_ids_is_told_from_text_even_when_the_gap_follows_its_first_digit() {
        assert!(RequestFields::read(br#"{"prompt":[1,2,3]}"#).prompt_is_tokens);
        assert!(RequestFields::read(br#"{"prompt": [ [1,2],[3]]}"#).prompt_is_tokens);
        assert!(RequestFields::read(br#"{"prompt_token_ids":[1"#).prompt_is_tokens);
        assert!(RequestFields::read(br#"{"input":[17"#).prompt_is_tokens);
        assert!(!RequestFields::read(br#"{"prompt":["a","b"],"x":[1]}"#).prompt_is_tokens);
        assert!(!RequestFields::read(br#"{"input":[{"role":"user","n":1}]}"#).prompt_is_tokens);
        assert!(!RequestFields::read(br#"{"prompt":[],"logit_bias":[4]}"#).prompt_is_tokens);
    }

    // {"model":"m","prompt":[1,2,~~~gap~~~,9,10],"max_tokens":7,"stream":true}
    #[test]
    fn parameters_behind_a_prompt_of_six_thousand_ids_are_read_through_a_gap() {
        let ids: Vec<u32> = (0..6_000).collect();
        let body = format!(r#"{{"model":"m","prompt":{ids:?},"max_tokens":7,"stream":true}}"#);
        let fields = read(body.as_bytes(), 999, Some((4_000, body.len() - 300)));
        assert_eq!((fields.max_tokens, fields.stream, fields.model.as_deref()), (Some(7), Some(true), Some("m")));
        assert!(fields.prompt_is_tokens && !fields.whole);
    }

    #[test]
    fn wrong_types_are_not_errors() {
        let fields = RequestFields::read(br#"{"model":5,"n":"two","stream":"yes","seed":7}"#);
        assert_eq!(fields, RequestFields { seed: Some(7), whole: true, ..RequestFields::default() });
    }

    #[test]
    fn a_form_is_not_whole_so_nothing_is_taken_for_absent() {
        assert!(!RequestFields::read(b"--x\r\ncontent-disposition: form-data; name=\"stream\"\r\n\r\ntrue").whole);
        assert!(RequestFields::read(b"").whole);
    }

    #[test]
    fn a_value_over_the_limit_is_not_given() {
        let body = format!(r#"{{"model":"{}","n":2}}"#, "m".repeat(300));
        let fields = RequestFields::read(body.as_bytes());
        assert_eq!((fields.model, fields.n), (None, Some(2)));
    }

    fn parameter() -> impl Strategy<Value = (String, Value)> {
        prop_oneof![
            "[a-z/\"\\\\é]{0,12}".prop_map(|s| ("model".to_owned(), json!(s))),
            any::<bool>().prop_map(|b| ("stream".to_owned(), json!(b))),
            (0..9_999_u64).prop_map(|n| ("max_tokens".to_owned(), json!(n))),
            (0..9_999_u64).prop_map(|n| ("max_completion_tokens".to_owned(), json!(n))),
            (1..9_u64).prop_map(|n| ("n".to_owned(), json!(n))),
            any::<bool>().prop_map(|b| ("echo".to_owned(), json!(b))),
            (0..200_u32).prop_map(|n| ("temperature".to_owned(), json!(f64::from(n) / 100.0))),
            any::<i64>().prop_map(|n| ("seed".to_owned(), json!(n))),
            "[a-f0-9]{8}".prop_map(|s| ("request_id".to_owned(), json!(s))),
            Just(("stop".to_owned(), json!(["n", "\"n\":3", "}"]))),
            Just(("stream_options".to_owned(), json!({"n": 77, "stream": false}))),
            Just(("prompt".to_owned(), json!([4, 5]))),
        ]
    }

    /// A body with the parameters before and behind the messages; and where the messages' array lies in it.
    fn body() -> impl Strategy<Value = (Vec<u8>, usize, usize)> {
        let texts = prop::collection::vec("[a-z \"\\\\{}\\[\\]:,\n]{0,40}|\"n\": 4, \"stream\":true}", 1..5);
        let names = || prop::collection::vec(parameter(), 0..8);
        (texts, names(), names()).prop_map(|(texts, before, behind)| {
            let messages: Vec<Value> = texts.iter().map(|t| json!({"role": "user", "n": 5, "content": t})).collect();
            let messages = json!(messages).to_string();
            let before: Map<_, _> = before.into_iter().collect();
            // A key that is sent twice has no one value.
            let behind: Map<_, _> = behind.into_iter().filter(|(key, _)| !before.contains_key(key)).collect();
            let pairs = |map: &Map<String, Value>| map.iter().map(|(k, v)| format!("{}: {v}", json!(k))).collect();
            let mut parts: Vec<String> = pairs(&before);
            let from = parts.iter().map(|p| p.len() + 1).sum::<usize>() + 1 + r#""messages":"#.len();
            parts.push(format!(r#""messages":{messages}"#));
            let more: Vec<String> = pairs(&behind);
            parts.extend(more);
            (format!("{{{}}}", parts.join(",")).into_bytes(), from, from + messages.len())
        })
    }

    proptest! {
        #[test]
        fn a_whole_body_in_any_cuts_gives_what_a_full_parse_gives((body, ..) in body(), step in 1..50_usize) {
            prop_assert_eq!(read(&body, step, None), oracle(&body));
        }

        // {"n":1,"messages":[ ...~~~gap~~~... ],"stream":true}
        #[test]
        fn a_gap_in_the_messages_takes_no_parameter((body, from, to) in body(), step in 1..50_usize, a in 0.0..1.0, b in 0.0..1.0) {
            let at = |share: f64| from + ((to - from) as f64 * share) as usize;
            let gap = (at(f64::min(a, b)), at(f64::max(a, b)));
            let expected = RequestFields { whole: false, ..oracle(&body) };
            prop_assert_eq!(read(&body, step, Some(gap)), expected);
        }

        #[test]
        fn a_gap_anywhere_gives_nothing_wrong((body, ..) in body(), a in 0.0..1.0, b in 0.0..1.0) {
            let at = |share: f64| (body.len() as f64 * share) as usize;
            let (from, to) = (at(f64::min(a, b)), at(f64::max(a, b)).max(1));
            let (got, truth) = (read(&body, 7, Some((from.min(to), to))), oracle(&body));
            prop_assert!(got.model.is_none() || got.model == truth.model);
            prop_assert!(got.stream.is_none() || got.stream == truth.stream);
            prop_assert!(got.n.is_none() || got.n == truth.n);
            prop_assert!(got.seed.is_none() || got.seed == truth.seed);
            prop_assert!(got.temperature.is_none() || got.temperature == truth.temperature);
            prop_assert!(!got.prompt_is_tokens || truth.prompt_is_tokens);
        }
    }
}
