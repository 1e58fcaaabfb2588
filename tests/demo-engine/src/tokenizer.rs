//! A fixed vocabulary of 2,048 syllables and bytes: text to token ids and back, without a model file.
//!
//! Every text encodes (bytes are the fallback), and decoding what was encoded gives the text back.

use std::collections::HashMap;

/// Tokens in the vocabulary, as many as the tiny Llama of the recipe has.
pub const VOCABULARY: u32 = 2048;
/// `</s>`, the Llama family's end-of-sequence id.
pub const END: u32 = 2;
const FIRST_BYTE: u32 = 3;
const FIRST_SYLLABLE: u32 = FIRST_BYTE + 256;
const ONSETS: [&str; 20] =
    ["b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "st", "tr", "th", "sh"];
const VOWELS: [&str; 5] = ["a", "e", "i", "o", "u"];
const CODAS: [&str; 10] = ["", "n", "r", "s", "t", "l", "m", "nd", "st", "ck"];

#[derive(Debug)]
pub struct Tokenizer {
    pieces: Vec<Vec<u8>>,
    ids: HashMap<Vec<u8>, u32>,
    longest: usize,
}

impl Default for Tokenizer {
    fn default() -> Self {
        let mut pieces: Vec<Vec<u8>> = vec![Vec::new(); FIRST_BYTE as usize];
        pieces.extend((0..=255).map(|byte| vec![byte]));
        'all: for coda in CODAS {
            for onset in ONSETS {
                for vowel in VOWELS {
                    for space in ["", " "] {
                        if pieces.len() == VOCABULARY as usize {
                            break 'all;
                        }
                        pieces.push(format!("{space}{onset}{vowel}{coda}").into_bytes());
                    }
                }
            }
        }
        let ids = pieces.iter().zip(0..).skip(FIRST_BYTE as usize).map(|(piece, id)| (piece.clone(), id)).collect();
        let longest = pieces.iter().map(Vec::len).max().unwrap_or(1);
        Self { pieces, ids, longest }
    }
}

impl Tokenizer {
    /// Longest piece first.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut rest = text.as_bytes();
        let mut tokens = Vec::with_capacity(rest.len() / 2);
        while !rest.is_empty() {
            let (len, id) = (1..=self.longest.min(rest.len()))
                .rev()
                .find_map(|len| self.ids.get(&rest[..len]).map(|id| (len, *id)))
                .unwrap_or((1, FIRST_BYTE + u32::from(rest[0])));
            tokens.push(id);
            rest = &rest[len..];
        }
        tokens
    }

    /// Bytes of one token; nothing for the special ones and for ids outside the vocabulary.
    pub fn piece(&self, token: u32) -> &[u8] {
        self.pieces.get(token as usize).map_or(&[], Vec::as_slice)
    }

    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| self.piece(*token)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// What the "model" says after `context`: a syllable, or the end about once in 64 tokens.
pub fn next_token(seed: u64, context: &[u32], may_end: bool) -> u32 {
    // FNV-1a over the last tokens: cheap, and the same for the same prompt, as greedy sampling is.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ seed;
    for token in context.iter().rev().take(32) {
        hash = (hash ^ u64::from(*token)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 29;
    if may_end && hash.is_multiple_of(64) {
        return END;
    }
    FIRST_SYLLABLE + ((hash >> 8) % u64::from(VOCABULARY - FIRST_SYLLABLE)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_comes_back_from_its_tokens() {
        let tokenizer = Tokenizer::default();
        for text in ["", "hello there", "naïve café, 日本語 \u{0} \"quoted\"\n", "stand trust shop"] {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text)), text);
        }
    }

    #[test]
    fn syllables_take_fewer_tokens_than_bytes() {
        assert_eq!(Tokenizer::default().encode("stand trust").len(), 2);
    }
}
