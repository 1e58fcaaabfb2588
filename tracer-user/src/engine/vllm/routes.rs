//! Which HTTP endpoints generate, and what they are called.

use crate::engine::Operation;

/// `id_prefix`: vLLM's `request_id` prefix with its separator.
const fn operation(route: &'static str, name: &'static str, id_prefix: Option<&'static str>) -> Operation {
    Operation { name, route, id_prefix }
}

/// vLLM's generating routes (vllm/entrypoints, 0.8.5 to 0.33). Longer routes stand before those they end with.
const OPERATIONS: [Operation; 18] = [
    operation("/v1/chat/completions", "chat", Some("chatcmpl-")),
    operation("/v1/chat/completions/batch", "chat", Some("chatcmpl-")),
    operation("/v1/completions", "text_completion", Some("cmpl-")),
    operation("/v1/responses", "chat", Some("resp_")),
    operation("/v1/messages", "chat", None),
    operation("/v1/embeddings", "embeddings", Some("embd-")),
    operation("/v2/embed", "embeddings", None),
    operation("/v1/audio/transcriptions", "transcription", None),
    operation("/v1/audio/translations", "translation", None),
    operation("/inference/v1/generate", "text_completion", None),
    operation("/v1/score", "score", None),
    operation("/score", "score", None),
    operation("/v1/rerank", "rerank", None),
    operation("/v2/rerank", "rerank", None),
    operation("/rerank", "rerank", None),
    operation("/classify", "classify", None),
    operation("/pooling", "pooling", None),
    operation("/invocations", "chat", None),
];

/// The operation that `method path` asks for; `None` for everything that does not generate. A prefix before the route
/// (`--root-path`, a proxy) is allowed.
pub(super) fn operation_of(method: &str, path: &str) -> Option<&'static Operation> {
    if matches!(method, "HEAD" | "OPTIONS") {
        return None;
    }
    let path = path.trim_end_matches('/');
    OPERATIONS.iter().find(|operation| path.ends_with(operation.route))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generating_endpoints_are_told_from_the_rest() {
        assert_eq!(operation_of("POST", "/v1/chat/completions").map(|o| o.name), Some("chat"));
        assert_eq!(operation_of("POST", "/proxy/v1/completions").map(|o| o.name), Some("text_completion"));
        for (method, path) in [
            ("POST", "/tokenize"),
            ("GET", "/health"),
            ("GET", "/metrics"),
            ("GET", "/v1/models"),
            ("POST", "/v1/messages/count_tokens"),
            ("GET", "/v1/responses/resp_1"),
            ("OPTIONS", "/v1/completions"),
        ] {
            assert_eq!(operation_of(method, path), None, "{method} {path}");
        }
    }
}
