//! Where a message body ends: by length, by chunks, or not before the connection does.

/// The body being read.
#[derive(Debug)]
pub(super) enum Body {
    /// Bytes to come.
    Length(u64),
    Chunked(Chunk),
    /// A response without length: ends with the connection.
    UntilClose,
}

/// Where in the chunked coding (RFC 9112 section 7.1) the stream is.
#[derive(Debug)]
pub(super) enum Chunk {
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
pub(super) enum Progress {
    /// All of the bytes belong to the body, which goes on.
    More,
    /// The body ended; this many of the bytes were its.
    Ended(usize),
}

impl Body {
    /// Takes the bytes of a call; hands decoded body bytes to `sink`.
    pub(super) fn advance(&mut self, bytes: &[u8], sink: &mut impl FnMut(&[u8])) -> Progress {
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

    /// Where the next message starts cannot be told from here on.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Self::Chunked(Chunk::Lost))
    }

    /// Bytes are missing, so many or nobody knows how many; true when it ended within them.
    pub(super) fn miss(&mut self, bytes: Option<u64>) -> bool {
        let Some(bytes) = bytes else {
            self.lose();
            return false;
        };
        self.gap(bytes) != Progress::More
    }

    /// Nothing is known of where it stands: bytes without a count are missing.
    pub(super) fn lose(&mut self) {
        if let Self::Chunked(chunk) = self {
            *chunk = Chunk::Lost;
        }
    }

    /// Takes up lost framing in a piece of a call, of which all bytes are at hand when `whole`: where in them a chunk starts.
    pub(super) fn recover(&mut self, bytes: &[u8], starts: bool, whole: bool) -> Option<usize> {
        let Self::Chunked(chunk) = self else { return None };
        let at = match whole.then(|| first_chain(bytes)).flatten() {
            None if starts && starts_size_line(bytes) => 0,
            found => found?,
        };
        *chunk = Chunk::Size(Vec::new());
        Some(at)
    }

    /// Whether a call that holds `bytes` shows that the end of the chunk before it is missing: it is made of whole chunks and
    /// does not go on where the chunk stands.
    pub(super) fn misses_bytes_before(&self, bytes: &[u8]) -> bool {
        let Self::Chunked(Chunk::Data(left)) = self else { return false };
        let Some(end) = usize::try_from(*left).ok().filter(|left| *left <= bytes.len()) else { return false };
        let goes_on = ends_chunk(*left, &bytes[end.saturating_sub(2)..end])
            && (end == bytes.len() || bytes[end].is_ascii_hexdigit());
        !goes_on && follow(bytes, 0, &mut [])
    }

    /// `gap` body bytes are missing; whether the body ended within them is given by `Ended(0)`.
    pub(super) fn gap(&mut self, gap: u64) -> Progress {
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
                    if !ends_chunk(*left, &rest[data as usize..n as usize]) {
                        *self = Self::Lost;
                        return Progress::More;
                    }
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

fn parse_size(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?;
    u64::from_str_radix(text.split(';').next()?.trim(), 16).ok()
}

fn starts_size_line(bytes: &[u8]) -> bool {
    let digits = bytes.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    (1..=8).contains(&digits) && bytes[digits..].starts_with(b"\r\n")
}

/// Whether `bytes`, the part behind the data of a chunk with `left` bytes to come, is what follows data: CR LF.
fn ends_chunk(left: u64, bytes: &[u8]) -> bool {
    let end: &[u8] = if left == 1 { b"\n" } else { b"\r\n" };
    end.starts_with(bytes)
}

/// The first place from which chunks follow one another up to the very end of `bytes`.
fn first_chain(bytes: &[u8]) -> Option<usize> {
    // Chains that fail meet one another: no place is followed twice.
    let mut failed = vec![false; bytes.len() + 1];
    let after_lines = memchr::memmem::find_iter(bytes, b"\r\n").map(|at| at + 2);
    std::iter::once(0).chain(after_lines).find(|&at| follow(bytes, at, &mut failed))
}

/// Whether chunks follow one another from `at` up to the very end of `bytes`, or to the end of the body there.
fn follow(bytes: &[u8], mut at: usize, failed: &mut [bool]) -> bool {
    let mut passed = Vec::new();
    let mut any = false;
    let ok = loop {
        let Some(rest) = bytes.get(at..) else { break false };
        if rest.is_empty() {
            break any;
        }
        if failed.get(at) == Some(&true) || !starts_size_line(rest) {
            break false;
        }
        passed.push(at);
        let Some(end) = memchr::memchr(b'\n', rest) else { break false };
        let Some(size) = parse_size(&rest[..end]) else { break false };
        if size == 0 {
            // The trailer section; nothing after it belongs to the body.
            break rest.ends_with(b"\r\n\r\n") && rest.len() - end < MAX_SIZE_LINE;
        }
        let Some(next) = usize::try_from(size).ok().and_then(|size| (end + 1).checked_add(size)?.checked_add(2)) else {
            break false;
        };
        if rest.get(next - 2..next) != Some(b"\r\n") {
            break false;
        }
        at += next;
        any = true;
    };
    if !ok {
        for place in passed {
            if let Some(mark) = failed.get_mut(place) {
                *mark = true;
            }
        }
    }
    ok
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

    // 200\r\n~~~cap~~~ 9\r\n3\r\nabc\r\n0\r\n\r\n
    //                     ^ looks like a size, and leads nowhere: the next one leads to the end
    #[test]
    fn a_tail_is_taken_up_where_its_chunks_lead_to_its_end() {
        let mut body = Body::Chunked(Chunk::Lost);
        let tail = b"xx\r\n9\r\n3\r\nabc\r\n0\r\n\r\n";
        let at = body.recover(tail, false, true).unwrap();
        let (out, ended) = read(&mut body, &[&tail[at..]]);
        assert_eq!((out.as_slice(), ended), (&b"abc"[..], true));
        assert_eq!(Body::Chunked(Chunk::Lost).recover(b"xx\r\n9\r\nabc\r\n", false, true), None);
    }

    #[test]
    fn chains_that_fail_cost_no_square() {
        let mut tail = b"1\r\na\r\n".repeat(20_000);
        tail.push(b'x');
        assert_eq!(first_chain(&tail), None);
    }

    #[test]
    fn a_chunk_whose_end_is_missing_is_noticed_and_an_undisturbed_one_is_not() {
        let mut body = Body::Chunked(Chunk::Size(Vec::new()));
        read(&mut body, &[b"9\r\nabcd"]);
        assert!(body.misses_bytes_before(b"3\r\nabc\r\n"));
        assert!(!body.misses_bytes_before(b"efghi\r\n3\r\nabc\r\n"));
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
