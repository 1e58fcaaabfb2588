//! A mixed load on a vLLM-like server, and an account of what was sent and seen.
//!
//! The kinds of requests are dealt from a shuffled deck to several concurrent clients, so every kind occurs when there are
//! at least as many requests as kinds. Everything that is random comes from the seed.

mod client;
mod kinds;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

pub use client::{Client, Response};
pub use kinds::Kind;

/// Unix seconds.
pub fn wall() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// What to send.
#[derive(Debug, Clone)]
pub struct Load {
    /// `http://host:port`
    pub url: String,
    pub model: String,
    pub kinds: Vec<Kind>,
    /// Concurrent clients.
    pub clients: usize,
    pub until: Until,
    pub seed: u64,
}

/// When to stop; what is under way is finished.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    Requests(usize),
    Elapsed(Duration),
}

/// One HTTP request as its client saw it.
#[derive(Debug, Clone, Serialize)]
pub struct Sent {
    pub kind: Kind,
    pub method: &'static str,
    pub path: &'static str,
    /// `X-Request-Id`, when one was sent.
    pub request_id: Option<String>,
    /// Trace id and parent span id of the `traceparent`, when one was sent.
    pub trace: Option<(String, String)>,
    pub stream: bool,
    /// `None` when the client hung up before.
    pub status: Option<u16>,
    /// `id` of the response.
    pub id: Option<String>,
    pub finish_reasons: Vec<String>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    /// Only where the server says it.
    pub cached_tokens: Option<u64>,
    /// Engine requests this makes when it is accepted.
    pub generations: usize,
    /// Events with content seen, of a stream.
    pub events: u64,
    /// When it was begun, unix seconds.
    pub started: f64,
    /// From the last request byte written to the first byte of the response's body, seconds.
    pub ttft: Option<f64>,
    /// To its last byte, or to the hang-up, seconds.
    pub e2e: f64,
    /// The client hung up.
    pub aborted: bool,
}

/// What a run did.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub requests: Vec<Sent>,
    /// Requests of each kind.
    pub kinds: BTreeMap<&'static str, usize>,
    pub completion_tokens: u64,
    /// Seconds.
    pub elapsed: f64,
}

/// Deterministic and good enough to mix a load (xorshift64*).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In `range`.
    pub fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + (self.number() >> 16) % (range.end - range.start)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.within(0..n) == 0
    }
}

/// Order of the kinds: one shuffled deck after another.
fn deck(kinds: &[Kind], cards: usize, random: &mut Random) -> Vec<Kind> {
    let mut order = Vec::new();
    while order.len() < cards {
        let mut deck = kinds.to_vec();
        for i in (1..deck.len()).rev() {
            deck.swap(i, random.within(0..i as u64 + 1) as usize);
        }
        order.extend(deck);
    }
    order.truncate(cards);
    order
}

impl Load {
    /// Sends it all and waits for the answers. An answer that is not what its kind asks for is an error.
    pub fn run(&self) -> io::Result<Summary> {
        let start = Instant::now();
        let (stop, probe) = self.probe()?;
        let mut random = Random::new(self.seed);
        let cards = match self.until {
            Until::Requests(count) => count,
            Until::Elapsed(_) => 100_000,
        };
        let deck = deck(&self.kinds, cards, &mut random);
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let results: Vec<io::Result<Vec<Sent>>> = thread::scope(|scope| {
            let clients: Vec<_> = (0..self.clients as u64)
                .map(|index| {
                    let (deck, next, failed, stop) = (&deck, &next, &failed, stop.as_str());
                    let seed = self.seed.wrapping_mul(1000).wrapping_add(index + 1);
                    scope.spawn(move || {
                        let mut session = kinds::Session::new(&self.url, &self.model, stop, seed);
                        let mut sent = Vec::new();
                        while !failed.load(Relaxed) {
                            let over = matches!(self.until, Until::Elapsed(limit) if start.elapsed() >= limit);
                            let Some(kind) = deck.get(next.fetch_add(1, Relaxed)).filter(|_| !over) else { break };
                            match session.perform(*kind) {
                                Ok(done) => sent.extend(done),
                                Err(error) => {
                                    failed.store(true, Relaxed);
                                    return Err(io::Error::new(error.kind(), format!("{}: {error}", kind.name())));
                                }
                            }
                        }
                        Ok(sent)
                    })
                })
                .collect();
            clients.into_iter().map(|client| client.join().unwrap_or_else(|_| Err(panicked()))).collect()
        });
        let mut requests = vec![probe];
        for result in results {
            requests.extend(result?);
        }
        let mut kinds = BTreeMap::new();
        for sent in &requests {
            *kinds.entry(sent.kind.name()).or_insert(0) += 1;
        }
        let completion_tokens = requests.iter().filter_map(|sent| sent.completion_tokens).sum();
        Ok(Summary { requests, kinds, completion_tokens, elapsed: start.elapsed().as_secs_f64() })
    }

    /// A string that the model surely says: the most frequent letter of a longer answer. And the request that asked.
    fn probe(&self) -> io::Result<(String, Sent)> {
        let mut session = kinds::Session::new(&self.url, &self.model, "", self.seed);
        let (text, sent) = session.probe()?;
        let mut letters = BTreeMap::new();
        for letter in text.chars().filter(char::is_ascii_alphabetic) {
            *letters.entry(letter).or_insert(0) += 1;
        }
        let found = letters.into_iter().max_by_key(|(_, count)| *count).map(|(letter, _)| letter.to_string());
        found.map(|letter| (letter, sent)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the server gave no letter in answer to a plain prompt")
        })
    }
}

fn panicked() -> io::Error {
    io::Error::other("a client panicked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deck_holds_every_kind_before_any_comes_again() {
        let deck = deck(Kind::ALL, Kind::ALL.len() * 2, &mut Random::new(7));
        let (mut first, mut second) = (deck[..Kind::ALL.len()].to_vec(), deck[Kind::ALL.len()..].to_vec());
        assert_ne!(first, second);
        first.sort();
        second.sort();
        assert_eq!(first, second);
    }
}
