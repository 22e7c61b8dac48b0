use std::collections::HashMap;
use std::sync::LazyLock;

/// How tokens spell the bytes they stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each byte is a letter of GPT-2's alphabet: a space is `Ġ`.
    ByteLevel,
    /// UTF-8 with `▁` for a space; bytes without a token of their own are `<0xNN>`.
    SentencePiece,
}

/// The bytes of every token, one after the other, by id.
#[derive(Debug)]
pub(super) struct Vocabulary {
    bytes: Vec<u8>,
    /// Token `i` is `bytes[offsets[i]..offsets[i + 1]]`.
    offsets: Vec<usize>,
    special: Vec<bool>,
}

impl Vocabulary {
    pub(super) fn new() -> Vocabulary {
        Vocabulary {
            bytes: Vec::new(),
            offsets: vec![0],
            special: Vec::new(),
        }
    }

    /// Adds the token with the next id, spelled as in the vocabulary.
    pub(super) fn push_spelled(&mut self, text: &str, spelling: Spelling) {
        match spelling {
            Spelling::ByteLevel => match byte_level(text) {
                Some(bytes) => self.bytes.extend(bytes),
                None => self.bytes.extend(text.as_bytes()),
            },
            Spelling::SentencePiece => match byte_token(text) {
                Some(byte) => self.bytes.push(byte),
                None => self.bytes.extend(text.replace('▁', " ").as_bytes()),
            },
        }
        self.end_token(false);
    }

    /// Adds the token with the next id, which stands for exactly this text.
    pub(super) fn push_verbatim(&mut self, text: &str, special: bool) {
        self.bytes.extend(text.as_bytes());
        self.end_token(special);
    }

    fn end_token(&mut self, special: bool) {
        self.offsets.push(self.bytes.len());
        self.special.push(special);
    }

    /// The token's bytes; nothing for an id without a token.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match (self.offsets.get(id), self.offsets.get(id + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start..end],
            _ => &[],
        }
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

/// The bytes a token of the byte-level alphabet spells; `None` if it has other letters too.
fn byte_level(text: &str) -> Option<Vec<u8>> {
    text.chars()
        .map(|letter| BYTE_OF_LETTER.get(&letter).copied())
        .collect()
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, the 68 other bytes for the letters from
/// U+0100 on, in order. Source: Radford et al. 2019, section 2.2 and the released encoder.
static BYTE_OF_LETTER: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let mut next = 0x100;
    let letter = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        _ => {
            next += 1;
            char::from_u32(next - 1).expect("68 letters from U+0100 on are no surrogates")
        }
    };
    (0..=255u8).map(letter).zip(0..=255u8).collect()
});

/// The byte of a token spelled `<0xNN>`.
fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_level_alphabet_is_a_bijection_with_known_letters() {
        assert_eq!(BYTE_OF_LETTER.len(), 256);
        for (letter, byte) in [
            ('Ġ', b' '),
            ('Ċ', b'\n'),
            ('ĉ', b'\t'),
            ('a', b'a'),
            ('Ń', 0xAD),
        ] {
            assert_eq!(BYTE_OF_LETTER[&letter], byte, "{letter}");
        }
    }

    #[test]
    fn both_spellings_give_the_bytes_they_stand_for() {
        let mut vocabulary = Vocabulary::new();
        vocabulary.push_spelled("ĠÃ©", Spelling::ByteLevel);
        vocabulary.push_spelled("▁the", Spelling::SentencePiece);
        vocabulary.push_spelled("<0xE2>", Spelling::SentencePiece);
        vocabulary.push_spelled("<0xE2>", Spelling::ByteLevel);
        vocabulary.push_verbatim("<|end ▁|>", true);
        assert_eq!(vocabulary.bytes(0), " é".as_bytes());
        assert_eq!(vocabulary.bytes(1), b" the");
        assert_eq!(vocabulary.bytes(2), [0xE2]);
        assert_eq!(vocabulary.bytes(3), b"<0xE2>");
        assert_eq!(vocabulary.bytes(4), "<|end ▁|>".as_bytes());
        assert_eq!(vocabulary.bytes(5), b"");
        assert!(vocabulary.is_special(4) && !vocabulary.is_special(0) && !vocabulary.is_special(9));
    }
}
