//! A blocking HTTP/1.1 client that says exactly which bytes are written when, and when to hang up.
//!
//! Keep-alive connections are reused, and opened anew when the server closed them meanwhile. Reads time out, so that a
//! server that stalls fails a test instead of hanging it.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Longest silence of a server: the first sampled request of the real one compiles for up to 40 s.
const SILENCE: Duration = Duration::from_mins(2);

/// A response, or as much of it as was wanted.
#[derive(Debug, Default)]
pub struct Response {
    pub status: u16,
    /// Whole for a plain body; the last event's data for a stream.
    pub body: String,
    /// The stream ended as it should, or the body is all there.
    pub whole: bool,
    /// From the last request byte written to the first byte of the body.
    pub first_byte: Option<Duration>,
}

/// One connection at a time to one server.
#[derive(Debug)]
pub struct Client {
    address: String,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
    written: Instant,
    /// Requests on the current connection.
    uses: u32,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Client {
    /// `url` is `http://host:port`.
    pub fn new(url: &str) -> Self {
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        Self { address, stream: None, buffer: Vec::new(), written: Instant::now(), uses: 0 }
    }

    /// Hangs up, whatever is under way.
    pub fn hang_up(&mut self) {
        self.stream = None;
        self.buffer.clear();
        self.uses = 0;
    }

    /// Our end of the connection, for joining with what an observer saw.
    pub fn local_port(&self) -> Option<u16> {
        self.stream.as_ref()?.local_addr().ok().map(|address| address.port())
    }

    /// A request's bytes.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        for (name, value) in headers {
            // A string takes every byte, here and below.
            let _ = write!(text, "{name}: {value}\r\n");
        }
        if method != "GET" {
            let _ = write!(text, "Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        text.push_str("\r\n");
        text.push_str(body);
        text.into_bytes()
    }

    /// Writes `parts`, one write each with a pause between.
    pub fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        if self.stale() {
            self.hang_up();
        }
        if self.stream.is_none() {
            let stream = TcpStream::connect(&self.address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(SILENCE))?;
            self.stream = Some(stream);
        }
        let stream = self.stream.as_mut().ok_or_else(|| broken("no connection"))?;
        for (index, part) in parts.iter().enumerate() {
            if index > 0 {
                std::thread::sleep(Duration::from_millis(3));
            }
            stream.write_all(part)?;
        }
        self.uses += 1;
        self.written = Instant::now();
        Ok(())
    }

    /// Whether the server has closed the kept connection. It does so after 5 s; a request at that very moment is lost,
    /// so one that is nearly that old is not reused.
    fn stale(&self) -> bool {
        let Some(stream) = &self.stream else { return false };
        if self.uses > 0 && self.written.elapsed() > Duration::from_secs(4) {
            return true;
        }
        let open = stream.set_nonblocking(true).is_ok()
            && matches!(stream.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        !(open && stream.set_nonblocking(false).is_ok())
    }

    /// Reads one response; `on_event` sees the data of every event of a stream, and may break off.
    pub fn receive(&mut self, on_event: &mut dyn FnMut(&str) -> ControlFlow<()>) -> io::Result<Response> {
        let (mut response, length) = self.head()?;
        if let Some(length) = length {
            if length > 0 && self.buffer.is_empty() {
                self.fill()?;
            }
            response.first_byte = Some(self.written.elapsed());
            while self.buffer.len() < length {
                self.fill()?;
            }
            response.body = String::from_utf8_lossy(&self.buffer[..length]).into_owned();
            self.buffer.drain(..length);
            response.whole = true;
            return Ok(response);
        }
        let mut text = String::new();
        loop {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                response.whole = true;
                return Ok(response);
            }
            response.first_byte = response.first_byte.or_else(|| Some(self.written.elapsed()));
            text.push_str(&String::from_utf8_lossy(&chunk));
            while let Some(end) = text.find("\n\n") {
                let event = text[..end].trim_start_matches("data: ").to_owned();
                text.drain(..end + 2);
                if event != "[DONE]" {
                    if on_event(&event).is_break() {
                        return Ok(response);
                    }
                    response.body = event;
                }
            }
        }
    }

    /// A request and its whole response.
    pub fn exchange(&mut self, request: &[u8]) -> io::Result<Response> {
        self.send(&[request])?;
        self.receive(&mut |_| ControlFlow::Continue(()))
    }

    /// `GET path`.
    pub fn get(&mut self, path: &str) -> io::Result<Response> {
        let request = self.request("GET", path, &[], "");
        self.exchange(&request)
    }

    /// Status line and headers: status, and the length of the body unless it is chunked.
    fn head(&mut self) -> io::Result<(Response, Option<usize>)> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut head = httparse::Response::new(&mut headers);
            match head.parse(&self.buffer).map_err(|error| broken(&format!("the response's head: {error}")))? {
                httparse::Status::Partial => self.fill()?,
                httparse::Status::Complete(end) => {
                    let length = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
                    let length = length.and_then(|header| str::from_utf8(header.value).ok()?.parse().ok());
                    let response = Response { status: head.code.unwrap_or(0), ..Response::default() };
                    self.buffer.drain(..end);
                    return Ok((response, length));
                }
            }
        }
    }

    fn chunk(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match httparse::parse_chunk_size(&self.buffer).map_err(|_| broken("a chunk's size"))? {
                httparse::Status::Complete((start, len)) if self.buffer.len() >= start + len as usize + 2 => {
                    let end = start + len as usize;
                    let chunk = self.buffer[start..end].to_vec();
                    self.buffer.drain(..end + 2);
                    return Ok(chunk);
                }
                _ => self.fill()?,
            }
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let stream = self.stream.as_mut().ok_or_else(|| broken("no connection"))?;
        let mut bytes = [0; 16 << 10];
        match stream.read(&mut bytes)? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
            n => {
                self.buffer.extend(&bytes[..n]);
                Ok(())
            }
        }
    }
}
