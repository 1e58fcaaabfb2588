//! Where a message body ends: by length, by chunks, or not before the connection does.

/// The body being read.
#[derive(Debug)]
pub enum Body {
    /// Bytes to come.
    Length(u64),
    Chunked(Chunk),
    /// A response without length: ends with the connection.
    UntilClose,
}

/// Where in the chunked coding (RFC 9112 section 7.1) the stream is.
#[derive(Debug)]
pub enum Chunk {
    /// In a size line; its bytes so far.
    Size(Vec<u8>),
    /// Data bytes of the chunk to come, and its CRLF.
    Data(u64),
    /// In the trailer section; bytes of the line so far (an empty line ends the body).
    Trailer(usize),
    /// A gap swallowed the framing; the next call that starts with a size line is one.
    Lost,
}

/// A chunk-size line is hex digits and maybe an extension.
const MAX_SIZE_LINE: usize = 256;
/// Larger chunks are taken for lost framing.
const MAX_CHUNK: u64 = 1 << 40;

/// What `advance` did.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// All of the bytes belong to the body, which goes on.
    More,
    /// The body ended; this many of the bytes were its.
    Ended(usize),
}

impl Body {
    /// Takes the bytes of a call; hands decoded body bytes to `sink`.
    pub fn advance(&mut self, bytes: &[u8], sink: &mut impl FnMut(&[u8])) -> Progress {
        match self {
            Self::UntilClose => {
                sink(bytes);
                Progress::More
            }
            Self::Length(left) => {
                let n = (*left).min(bytes.len() as u64) as usize;
                *left -= n as u64;
                sink(&bytes[..n]);
                if *left == 0 { Progress::Ended(n) } else { Progress::More }
            }
            Self::Chunked(chunk) => chunk.advance(bytes, sink),
        }
    }

    /// Takes the last bytes of a call of which the middle is not there: framing that was lost in the gap is found again where a
    /// chain of chunks leads from a size line to the very end of the call.
    pub fn advance_tail(&mut self, bytes: &[u8], sink: &mut impl FnMut(&[u8])) -> Progress {
        if let Self::Chunked(chunk @ Chunk::Lost) = self {
            let Some(start) = chain_to_end(bytes) else { return Progress::More };
            *chunk = Chunk::Size(Vec::new());
            return match self.advance(&bytes[start..], sink) {
                Progress::Ended(n) => Progress::Ended(start + n),
                Progress::More => Progress::More,
            };
        }
        self.advance(bytes, sink)
    }

    /// The framing is lost: where the body ends is not known.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Chunked(Chunk::Lost))
    }

    /// `gap` body bytes are missing; whether the body ended within them is given by `Ended(0)`.
    pub fn gap(&mut self, gap: u64) -> Progress {
        match self {
            Self::UntilClose => Progress::More,
            Self::Length(left) => {
                *left = left.saturating_sub(gap);
                if *left == 0 { Progress::Ended(0) } else { Progress::More }
            }
            Self::Chunked(chunk) => {
                match chunk {
                    Chunk::Data(left) if gap <= *left => *left -= gap,
                    _ => *chunk = Chunk::Lost,
                }
                Progress::More
            }
        }
    }
}

impl Chunk {
    /// Where in the coding the stream is is not known any more.
    pub fn lose(&mut self) {
        *self = Self::Lost;
    }

    fn advance(&mut self, bytes: &[u8], sink: &mut impl FnMut(&[u8])) -> Progress {
        let mut at = 0;
        if matches!(self, Self::Lost) {
            if !starts_size_line(bytes) {
                return Progress::More;
            }
            *self = Self::Size(Vec::new());
        }
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self {
                Self::Lost => return Progress::More,
                Self::Size(line) => {
                    let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |i| i + 1);
                    if line.len() + end > MAX_SIZE_LINE {
                        *self = Self::Lost;
                        return Progress::More;
                    }
                    line.extend_from_slice(&rest[..end]);
                    at += end;
                    if line.last() == Some(&b'\n') {
                        *self = match parse_size(line) {
                            Some(0) => Self::Trailer(0),
                            // The CRLF after the data is counted with it.
                            Some(n) if n < MAX_CHUNK => Self::Data(n + 2),
                            _ => Self::Lost,
                        };
                    }
                }
                Self::Data(left) => {
                    let n = (*left).min(rest.len() as u64);
                    let data = left.saturating_sub(2).min(n);
                    sink(&rest[..data as usize]);
                    *left -= n;
                    at += n as usize;
                    if *left == 0 {
                        *self = Self::Size(Vec::new());
                    }
                }
                Self::Trailer(line) => {
                    at += 1;
                    match rest[0] {
                        b'\n' if *line == 0 => {
                            *self = Self::Size(Vec::new());
                            return Progress::Ended(at);
                        }
                        b'\n' => *line = 0,
                        b'\r' => {}
                        _ => *line += 1,
                    }
                }
            }
        }
        Progress::More
    }
}

/// The first place from which size lines and data lead exactly to the end of `bytes`, or to the end of the body there.
fn chain_to_end(bytes: &[u8]) -> Option<usize> {
    let starts = std::iter::once(0).chain(memchr::memchr_iter(b'\n', bytes).map(|at| at + 1));
    starts.filter(|&at| starts_size_line(&bytes[at..])).find(|&start| {
        let mut at = start;
        while at < bytes.len() {
            let rest = &bytes[at..];
            if rest.starts_with(b"0\r\n") {
                return rest == b"0\r\n\r\n";
            }
            let Some(line) = memchr::memchr(b'\n', rest) else { return false };
            let Some(size) = parse_size(&rest[..=line]).filter(|&n| n < MAX_CHUNK) else { return false };
            let next = at as u64 + line as u64 + 1 + size + 2;
            if next > bytes.len() as u64 || &bytes[next as usize - 2..next as usize] != b"\r\n" {
                return false;
            }
            at = next as usize;
        }
        true
    })
}

fn parse_size(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?;
    u64::from_str_radix(text.split(';').next()?.trim(), 16).ok()
}

fn starts_size_line(bytes: &[u8]) -> bool {
    let digits = bytes.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    (1..=8).contains(&digits) && bytes[digits..].starts_with(b"\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &mut Body, calls: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        let mut ended = false;
        for bytes in calls {
            ended |= matches!(body.advance(bytes, &mut |b| out.extend_from_slice(b)), Progress::Ended(_));
        }
        (out, ended)
    }

    #[test]
    fn chunks_are_joined_however_they_are_cut() {
        let coded = b"5\r\nhello\r\n6;x=1\r\n world\r\n0\r\n\r\n";
        for cut in 0..coded.len() {
            let mut body = Body::Chunked(Chunk::Size(Vec::new()));
            let (out, ended) = read(&mut body, &[&coded[..cut], &coded[cut..]]);
            assert_eq!((out.as_slice(), ended), (&b"hello world"[..], true), "cut at {cut}");
        }
    }

    #[test]
    fn framing_is_found_again_in_the_tail_of_a_call() {
        let mut body = Body::Chunked(Chunk::Size(Vec::new()));
        read(&mut body, &[b"5\r\nhe"]);
        body.gap(5_000);
        let mut out = Vec::new();
        // … the end of a chunk that holds what looks like a size line, then two chunks and the end
        let tail = b"lo 7\r\nno\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let progress = body.advance_tail(tail, &mut |b| out.extend_from_slice(b));
        assert_eq!((progress, out.as_slice()), (Progress::Ended(tail.len()), &b"abcde"[..]));
    }

    #[test]
    fn framing_lost_in_a_gap_is_found_at_the_next_size_line() {
        let mut body = Body::Chunked(Chunk::Size(Vec::new()));
        read(&mut body, &[b"5\r\nhe"]);
        body.gap(50);
        let (out, ended) = read(&mut body, &[b"junk", b"3\r\nabc\r\n", b"0\r\n\r\n"]);
        assert_eq!((out.as_slice(), ended), (&b"abc"[..], true));
    }
}
