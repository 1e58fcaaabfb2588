//! How a response's id and an engine request's id belong together (vLLM; the table is in docs/architecture.md).
//!
//! | response | external id | engine id |
//! |---|---|---|
//! | `chatcmpl-R` | `chatcmpl-R` | `chatcmpl-R-8hex` |
//! | `cmpl-R` | `cmpl-R-<prompt>` | `cmpl-R-<prompt>-8hex` |
//! | `resp_R` | `resp_R_<turn>` | `resp_R_<turn>-8hex` |
//! | n = 2 | as above | `0_…`, `1_…` before it |
//! | beam search | `R-<16 or 32 hex>-beam-<beam>` behind the response's id | that, and `-8hex` |
//!
//! Before vLLM 0.14 the engine id is the external one.

use crate::engine::Identity;

/// The engine id without the child index of a parallel sample, and that index.
pub(super) fn split_child(id: &str) -> (Option<u32>, &str) {
    match id.split_once('_') {
        Some((index, rest)) if !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit()) => {
            (index.parse().ok(), rest)
        }
        _ => (None, id),
    }
}

/// The external id, derived from an engine id that came without one.
pub fn external_of(id: &str) -> &str {
    let (_, base) = split_child(id);
    match base.rsplit_once('-') {
        Some((head, tail))
            if tail.len() == 8 && tail.bytes().all(|b| b.is_ascii_hexdigit()) && head.contains(['-', '_']) =>
        {
            head
        }
        _ => base,
    }
}

/// The part of an external id that a response shows: the prompt or turn index cut off.
fn without_index(external: &str) -> Option<&str> {
    let cut = |separator| {
        let (head, tail) = external.rsplit_once(separator)?;
        (!tail.is_empty() && tail.bytes().all(|b| b.is_ascii_digit())).then_some(head)
    };
    // A chat has one engine request, so a number at its end is the client's own.
    if external.starts_with("chatcmpl-") { cut('_') } else { cut('-').or_else(|| cut('_')) }
}

/// The id that the engine requests of one beam search share (vllm/entrypoints/generate/beam_search/online.py: a new random part
/// for every token, a number for every beam).
fn beam_search(external: &str) -> Option<&str> {
    let (batch, beam) = external.rsplit_once("-beam-")?;
    let (request, random) = batch.rsplit_once('-')?;
    let is_random = matches!(random.len(), 16 | 32) && random.bytes().all(|b| b.is_ascii_hexdigit());
    let is_number = !beam.is_empty() && beam.bytes().all(|b| b.is_ascii_digit());
    (is_random && is_number).then_some(request)
}

/// The response ids that the engine request with this external id may belong to.
fn responses(external: &str) -> impl Iterator<Item = &str> {
    let own = beam_search(external).unwrap_or(external);
    std::iter::once(own).chain(without_index(own))
}

/// The prompt (or turn) index at the end of an external id that is not the response's.
fn index_of(external: &str, response: &str) -> Option<u32> {
    external.strip_prefix(response)?.strip_prefix(['-', '_'])?.parse().ok()
}

/// What both ids of an engine request say.
pub(super) fn identity(id: &str, external: Option<&str>) -> Identity {
    let external = external.unwrap_or_else(|| external_of(id));
    let responses = responses(external).map(|response| (response.to_owned(), index_of(external, response))).collect();
    Identity {
        external: external.to_owned(),
        sample: split_child(id).0,
        responses,
        client: client_id(external).to_owned(),
        search: beam_search(external).map(str::to_owned),
    }
}

/// The id that a client sees, when no response showed it.
fn client_id(external: &str) -> &str {
    match beam_search(external) {
        Some(request) => request,
        None => without_index(external).unwrap_or(external),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_real_ids_joins() {
        for (engine, external, response) in [
            ("chatcmpl-my-rid-7-bd151e35", "chatcmpl-my-rid-7", "chatcmpl-my-rid-7"),
            ("cmpl-nn-0-88e35977", "cmpl-nn-0", "cmpl-nn"),
            ("1_cmpl-nn-0-88e35977", "cmpl-nn-0", "cmpl-nn"),
            ("resp_b2453c9bbc3dddb1_0-8916c2ea", "resp_b2453c9bbc3dddb1_0", "resp_b2453c9bbc3dddb1"),
            ("cmpl-cf19d919-762fdbd6", "cmpl-cf19d919", "cmpl-cf19d919"),
            ("cmpl-bs-00112233445566aa-beam-3-762fdbd6", "cmpl-bs-00112233445566aa-beam-3", "cmpl-bs"),
        ] {
            assert_eq!(external_of(engine), external);
            let identity = identity(engine, None);
            assert!(identity.responses.iter().any(|(id, _)| id == response), "{external} {response}");
        }
    }

    #[test]
    fn a_number_that_ends_a_chat_id_is_the_clients() {
        assert_eq!(identity("chatcmpl-job-7", None).responses, [("chatcmpl-job-7".to_owned(), None)]);
    }

    #[test]
    fn an_old_engine_id_is_its_own_external_id() {
        assert_eq!(
            external_of("chatcmpl-0123456789abcdef0123456789abcdef"),
            "chatcmpl-0123456789abcdef0123456789abcdef"
        );
        assert_eq!(external_of("chatcmpl-my-rid-7"), "chatcmpl-my-rid-7");
    }

    #[test]
    fn the_prompts_and_samples_of_a_response_are_numbered() {
        let identity = identity("1_cmpl-nn-2-88e35977", None);
        assert_eq!((identity.sample, identity.prompt_of("cmpl-nn")), (Some(1), Some(2)));
        assert_eq!((identity.client.as_str(), identity.search.as_deref()), ("cmpl-nn", None));
        assert_eq!(identity.prompt_of("cmpl-other"), None);
    }
}
