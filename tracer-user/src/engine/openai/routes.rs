//! The API's own routes.

use crate::engine::Operation;

const fn operation(route: &'static str, name: &'static str) -> Operation {
    Operation { name, route, id_prefix: None }
}

/// <https://platform.openai.com/docs/api-reference>
const OPERATIONS: [Operation; 6] = [
    operation("/v1/chat/completions", "chat"),
    operation("/v1/completions", "text_completion"),
    operation("/v1/responses", "chat"),
    operation("/v1/embeddings", "embeddings"),
    operation("/v1/audio/transcriptions", "transcription"),
    operation("/v1/audio/translations", "translation"),
];

/// The operation that `method path` asks for; a prefix before the route (a proxy's) is allowed.
pub(super) fn operation_of(method: &str, path: &str) -> Option<&'static Operation> {
    let path = path.trim_end_matches('/');
    OPERATIONS.iter().find(|operation| method == "POST" && path.ends_with(operation.route))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generating_endpoints_are_told_from_the_rest() {
        assert_eq!(operation_of("POST", "/v1/chat/completions").map(|o| o.name), Some("chat"));
        assert_eq!(operation_of("POST", "/api/v1/responses/").map(|o| o.name), Some("chat"));
        for (method, path) in [("GET", "/v1/models"), ("POST", "/api/chat"), ("GET", "/v1/chat/completions")] {
            assert_eq!(operation_of(method, path), None, "{method} {path}");
        }
    }
}
