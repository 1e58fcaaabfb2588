//! Nothing that people wrote is in what a traced server leaves: not in a recording, nor in any other output.
//!
//! A secret of its own is planted in every field that somebody fills in: bodies of each route, in one piece and in chunks, refused ones
//! that the server repeats, queries, header values, the server's own command line. Then all that was written is searched for each.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use inferspan::recording::blocks;
use inferspan_harness::folder::Folder;
use inferspan_harness::process::Signal;
use inferspan_tests::attached::Attached;
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::live::may_trace;

const ENGINE: &str = env!("CARGO_BIN_EXE_test-engine");
/// On the server's command line.
const API_KEY: &str = "s3cret-api-key-of-the-command-line";
/// Outputs beside the recording.
const OUTPUTS: [&str; 5] = ["--access-log", "--traces-out", "--metrics-out", "--perfetto", "--chrome"];

/// Sends a request as it stands and reads the answer to its end.
fn send(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the engine listens");
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    answer
}

/// Secrets that were planted so far.
struct Planted<'a> {
    address: &'a str,
    model: &'a str,
    secrets: Vec<String>,
}

impl Planted<'_> {
    fn secret(&mut self, name: &str) -> String {
        let text = format!("s3cret-{name}-{:08x}", name.len() * 0x9e37_79b1);
        self.secrets.push(text.clone());
        text
    }

    /// The head of a request, with a secret in its query and in each value of its headers.
    fn head(&mut self, path: &str, tag: &str, framing: &str) -> String {
        let query = (self.secret(&format!("query-{tag}")), self.secret(&format!("query-value-{tag}")));
        let mut head = format!("POST /v1/{path}?{}={} HTTP/1.1\r\nConnection: close\r\n", query.0, query.1);
        for (name, before) in [
            ("Host", ""),
            ("Authorization", "Bearer "),
            ("Cookie", "session="),
            ("User-Agent", ""),
            ("X-Api-Key", ""),
            ("Referer", ""),
            ("OpenAI-Organization", ""),
            ("Forwarded", "for="),
        ] {
            let value = self.secret(&format!("{}-{tag}", name.to_lowercase()));
            head = format!("{head}{name}: {before}{value}\r\n");
        }
        let field = self.secret(&format!("header-{tag}"));
        format!("{head}{field}: y\r\nContent-Type: application/json\r\n{framing}\r\n\r\n")
    }

    /// What a request of a route says beside its prompt, with a secret in each field.
    fn fields(&mut self, tag: &str) -> String {
        let mut of = |name: &str| self.secret(&format!("{name}-{tag}"));
        let (key, value, tool, field) = (of("key"), of("value"), of("tool"), of("field"));
        format!(
            r#""user":"{}","metadata":{{"{key}":"{value}"}},"stop":["{}"],"suffix":"{}","tools":[{{"type":"function","function":{{"name":"{tool}","description":"{}"}}}}],"response_format":{{"type":"{}"}},"logit_bias":{{}},"{field}":"x""#,
            of("user"),
            of("stop"),
            of("suffix"),
            of("description"),
            of("format"),
        )
    }

    /// The prompt of a route, as its JSON fields.
    fn prompt(&mut self, path: &str, tag: &str) -> String {
        let mut of = |name: &str| self.secret(&format!("{name}-{tag}"));
        match path {
            "chat/completions" => format!(
                r#""messages":[{{"role":"system","content":"{}"}},{{"role":"user","name":"{}","content":[{{"type":"text","text":"{}"}}]}}]"#,
                of("system"),
                of("name"),
                of("content")
            ),
            "responses" => format!(
                r#""input":[{{"role":"user","content":[{{"type":"input_text","text":"{}"}}]}}],"instructions":"{}","previous_response_id":"{}""#,
                of("input"),
                of("instructions"),
                of("previous")
            ),
            "embeddings" => format!(r#""input":["{}","{}"]"#, of("input"), of("second-input")),
            _ => format!(r#""prompt":"{}""#, of("prompt")),
        }
    }

    fn body(&mut self, path: &str, tag: &str, stream: bool) -> String {
        let (prompt, fields) = (self.prompt(path, tag), self.fields(tag));
        format!(r#"{{"model":"{}",{prompt},"max_tokens":4,"stream":{stream},{fields}}}"#, self.model)
    }

    /// A request in one piece.
    fn whole(&mut self, path: &str, tag: &str, body: &str) -> String {
        let head = self.head(path, tag, &format!("Content-Length: {}", body.len()));
        send(self.address, &format!("{head}{body}"))
    }

    /// The same in a chunk a field, with an extension that is a secret too.
    fn chunked(&mut self, path: &str, tag: &str, body: &str) -> String {
        let extension = self.secret(&format!("extension-{tag}"));
        let mut request = self.head(path, tag, "Transfer-Encoding: chunked");
        for (number, chunk) in body.split_inclusive(',').enumerate() {
            let extension = if number == 0 { format!(";x={extension}") } else { String::new() };
            request = format!("{request}{:x}{extension}\r\n{chunk}\r\n", chunk.len());
        }
        request.push_str("0\r\n\r\n");
        send(self.address, &request)
    }

    /// Every route and form.
    fn all(&mut self) {
        for path in ["chat/completions", "completions", "responses", "embeddings"] {
            for stream in [false, true] {
                let tag = format!("{path}-{stream}");
                let body = self.body(path, &tag, stream);
                self.whole(path, &tag, &body);
            }
            let tag = format!("{path}-chunked");
            let body = self.body(path, &tag, true);
            self.chunked(path, &tag, &body);
        }
        // Refused, and repeated in the answer.
        let wrong = self.secret("wrong-messages");
        let body = format!(r#"{{"model":"{}","messages":"{wrong}"}}"#, self.model);
        let answer = self.whole("chat/completions", "refused", &body);
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(&wrong), "{answer}");
        // No JSON at all.
        let broken = self.secret("broken-body");
        self.whole("completions", "broken", &format!(r#"{{"prompt":"{broken}"#));
        let (path, query, id) =
            (self.secret("path-of-another-endpoint"), self.secret("query-of-it"), self.secret("id-of-it"));
        let get =
            format!("GET /{path}?{query}=1 HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id}\r\nConnection: close\r\n\r\n");
        send(self.address, &get);
        // What the model says: its words are looked for as well.
        let said = self.secret("say-something");
        let body = format!(r#"{{"model":"{}","prompt":"{said}","max_tokens":40,"ignore_eos":true}}"#, self.model);
        let answer = self.whole("completions", "output", &body);
        let text = answer.split("\"text\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("an output");
        assert!(text.len() > 8, "{answer}");
        self.secrets.push(text.to_owned());
    }
}

/// What is in a recording, unpacked.
fn content(file: &Path) -> Vec<u8> {
    let bytes = fs::read(file).expect("a recording");
    let mut rest = &bytes[12..];
    let mut content = Vec::new();
    while let Some(block) = blocks::read(&mut rest).expect("a whole recording") {
        content.extend(block);
    }
    content
}

/// Secrets that are in `content`.
fn found<'a>(secrets: &'a [String], content: &[u8]) -> Vec<&'a str> {
    let is_in = |secret: &&str| memchr::memmem::find(content, secret.as_bytes()).is_some();
    secrets.iter().map(String::as_str).filter(is_in).collect()
}

#[test]
fn nothing_that_people_wrote_is_in_what_is_written() {
    if !may_trace("nothing_that_people_wrote_is_in_what_is_written") {
        return;
    }
    let folder = Folder::new("secrets").expect("a folder");
    let mut command = Command::new(ENGINE);
    command.args(["--api-key", API_KEY]);
    let engine = DemoEngine::start(command, folder.path(), |_, announced| Some(announced)).expect("demo engine");
    let address = engine.target.url.trim_start_matches("http://").trim_end_matches('/');
    for raw in [false, true] {
        let path = |name: &str| folder.path().join(format!("{raw}{name}"));
        let text = |name: &str| path(name).to_str().expect("UTF-8").to_owned();
        let mut arguments = vec!["-o".to_owned(), text(".isrec")];
        arguments.extend(OUTPUTS.iter().flat_map(|flag| [(*flag).to_owned(), text(flag)]));
        arguments.extend(raw.then(|| "--raw".to_owned()));
        let recording = Attached::start("record", engine.target.pid, &arguments);
        let mut planted = Planted { address, model: &engine.target.model, secrets: Vec::new() };
        planted.all();
        recording.signal(Signal::INT);
        let (code, said) = recording.end();
        assert_eq!(code, Some(0), "{said}");
        let secrets = planted.secrets;
        let content = content(&path(".isrec"));
        let kept = found(&secrets, &content);
        if raw {
            assert_eq!(kept.len(), secrets.len(), "a raw recording has them all, so the search finds what is there");
        } else {
            assert_eq!(kept, [""; 0], "of {} secrets, in {} bytes of a recording", secrets.len(), content.len());
            assert!(secrets.len() > 200 && content.len() > 5_000, "{} secrets, {} bytes", secrets.len(), content.len());
        }
        for (name, content) in OUTPUTS.iter().map(|flag| (*flag, fs::read(path(flag)).expect("an output"))) {
            assert_eq!(found(&secrets, &content), [""; 0], "raw: {raw}: {name}");
            assert!(content.len() > 1_000, "{name}: {} bytes", content.len());
        }
        let own = [API_KEY.to_owned()];
        let outputs = OUTPUTS.iter().map(|flag| fs::read(path(flag)).expect("an output"));
        for content in outputs.chain([content, said.into_bytes()]) {
            assert_eq!(found(&own, &content), [""; 0], "raw: {raw}: the server's command line");
        }
    }
}
