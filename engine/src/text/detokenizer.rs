use pageloom_model_runner::TokenId;

use super::Tokenizer;

/// Turns a growing sequence of tokens into text, piece by piece.
///
/// A character may be spread over several tokens. Its bytes are held back until it is whole, or
/// until the next byte shows that it never will be, so the pieces joined are what
/// [`Tokenizer::decode`] gives for the whole sequence. The text continues a prompt: a leading
/// space is kept.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    skip_special: bool,
    /// Start of a character, at most 3 bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// `skip_special`: leave special tokens out of the text.
    pub fn new(skip_special: bool) -> Detokenizer {
        Detokenizer {
            skip_special,
            pending: Vec::new(),
        }
    }

    /// Takes the next token and returns the text that became certain.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: TokenId) -> String {
        if self.skip_special && tokenizer.is_special(id) {
            return String::new();
        }
        self.pending.extend_from_slice(tokenizer.bytes_of(id));
        take_whole_characters(&mut self.pending)
    }

    /// Ends the text: what is left of a character becomes U+FFFD.
    ///
    /// The tokenizer is not needed while bytes are all that is held back.
    pub fn flush(&mut self, _tokenizer: &Tokenizer) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

/// Takes all but a character's incomplete start from `bytes`; what can never become a character
/// is replaced by U+FFFD as [`String::from_utf8_lossy`] would.
fn take_whole_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    loop {
        match str::from_utf8(&bytes[done..]) {
            Ok(valid) => {
                text.push_str(valid);
                done = bytes.len();
                break;
            }
            Err(error) => {
                let valid = done + error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[done..valid]));
                done = valid;
                let Some(invalid) = error.error_len() else {
                    break;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                done += invalid;
            }
        }
    }
    bytes.drain(..done);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_joined_are_the_lossy_text_however_the_bytes_are_cut(
            bytes in prop::collection::vec(prop::sample::select(
                vec![b'a', 0x80, 0xBF, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xED, 0xFF]
            ), 0..40),
            cuts in prop::collection::vec(1usize..5, 40),
        ) {
            let (mut pending, mut text, mut rest) = (Vec::new(), String::new(), &bytes[..]);
            for cut in cuts {
                let (piece, others) = rest.split_at(cut.min(rest.len()));
                rest = others;
                pending.extend_from_slice(piece);
                text.push_str(&take_whole_characters(&mut pending));
                prop_assert!(pending.len() <= 3);
            }
            text.push_str(&String::from_utf8_lossy(&pending));
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn a_character_appears_with_its_last_byte() {
        let mut pending = vec![0xF0, 0x9F];
        assert_eq!(take_whole_characters(&mut pending), "");
        pending.extend([0x98, 0x80, b'x', 0xC3]);
        assert_eq!(take_whole_characters(&mut pending), "😀x");
        assert_eq!(pending, [0xC3]);
    }
}
