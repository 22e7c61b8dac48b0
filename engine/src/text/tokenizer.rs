use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;

use pageloom_model_runner::{Checkpoint, TokenId};
use serde_json::Value;
use tokenizers::{DecoderWrapper, Tokenizer as Inner};

use super::TextError;
use super::gguf_tokenizer::{self, Rebuilt};
use super::vocabulary::{Spelling, Vocabulary};

/// Largest `tokenizer.json` that is read; the largest known have some 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Turns text into a model's token ids and back.
///
/// Control tokens spelled out in the text (`<|im_end|>`) become their ids, as chat templates rely
/// on. Safe to use from many threads.
pub struct Tokenizer {
    inner: Inner,
    vocabulary: Vocabulary,
    spelling: Spelling,
    vocab_size: usize,
    bos: Option<TokenId>,
    eos_ids: Vec<TokenId>,
    around: Around,
}

/// Who puts begin and end tokens around a text.
#[derive(Debug)]
enum Around {
    /// The `post_processor` of `tokenizer.json`.
    PostProcessor,
    /// Flags of the GGUF file.
    Flags { add_bos: bool, add_eos: bool },
}

impl Tokenizer {
    /// Reads a folder's `tokenizer.json`, or rebuilds the tokenizer from a GGUF file's metadata.
    ///
    /// # Errors
    /// [`TextError`] naming the file and what is missing, malformed or not supported.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Tokenizer, TextError> {
        match (checkpoint.gguf(), checkpoint.folder()) {
            (Some(gguf), _) => {
                let config = checkpoint.config();
                let rebuilt = gguf_tokenizer::rebuild(gguf)?;
                let mut tokenizer = Tokenizer::from_rebuilt(rebuilt, config.vocab_size);
                tokenizer.bos = config.bos_token_id;
                tokenizer.eos_ids.clone_from(&config.eos_token_ids);
                Ok(tokenizer)
            }
            (None, Some(folder)) => Tokenizer::from_folder(folder, checkpoint),
            (None, None) => Err(TextError::Missing {
                path: checkpoint.path().to_owned(),
                what: "a tokenizer".to_owned(),
            }),
        }
    }

    /// A tokenizer without begin and end tokens yet.
    pub(super) fn from_rebuilt(rebuilt: Rebuilt, vocab_size: usize) -> Tokenizer {
        Tokenizer {
            inner: rebuilt.tokenizer,
            vocabulary: rebuilt.vocabulary,
            spelling: rebuilt.spelling,
            vocab_size,
            bos: None,
            eos_ids: Vec::new(),
            around: Around::Flags {
                add_bos: rebuilt.add_bos,
                add_eos: rebuilt.add_eos,
            },
        }
    }

    fn from_folder(folder: &Path, checkpoint: &Checkpoint) -> Result<Tokenizer, TextError> {
        let path = folder.join("tokenizer.json");
        let malformed = |reason: String| TextError::Malformed {
            path: path.clone(),
            reason,
        };
        let json = read_bounded(&path, MAX_TOKENIZER_BYTES)?;
        let mut inner = Inner::from_bytes(&json).map_err(|error| malformed(error.to_string()))?;
        // Left-over training settings; they would cut prompts silently.
        inner
            .with_truncation(None)
            .map_err(|error| malformed(error.to_string()))?;
        inner.with_padding(None);
        let spelling =
            inner
                .get_decoder()
                .and_then(spelling)
                .ok_or_else(|| TextError::Unsupported {
                    path: path.clone(),
                    what: "decoder",
                    found: serde_json::to_string(&inner.get_decoder()).unwrap_or_default(),
                    supported: "ByteLevel, Metaspace, Sequence with ByteFallback or ByteLevel",
                })?;
        let config = checkpoint.config();
        let vocabulary = vocabulary_of(&inner, spelling, config.vocab_size);
        let mut tokenizer = Tokenizer {
            inner,
            vocabulary,
            spelling,
            vocab_size: config.vocab_size,
            bos: config.bos_token_id,
            eos_ids: config.eos_token_ids.clone(),
            around: Around::PostProcessor,
        };
        if let Some(settings) = tokenizer_config(folder)? {
            let id_of = |key: &str| {
                special_text(&settings, key).and_then(|text| tokenizer.token_to_id(text))
            };
            let (bos, eos) = (id_of("bos_token"), id_of("eos_token"));
            tokenizer.bos = bos.or(tokenizer.bos);
            if let Some(eos) = eos
                && !tokenizer.eos_ids.contains(&eos)
            {
                tokenizer.eos_ids.push(eos);
            }
        }
        Ok(tokenizer)
    }

    /// Turns text into token ids.
    ///
    /// `add_special` puts the begin and end tokens around the text that the model was trained
    /// with, if any. Text that a chat template wrote has them already.
    ///
    /// # Errors
    /// [`TextError::UnknownToken`] for a token the model has no embedding for,
    /// [`TextError::Encode`] if the tokenizer fails.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError> {
        let by_inner = add_special && matches!(self.around, Around::PostProcessor);
        let encoding =
            self.inner
                .encode_fast(text, by_inner)
                .map_err(|error| TextError::Encode {
                    reason: error.to_string(),
                })?;
        let ids = encoding.get_ids();
        let mut all = Vec::with_capacity(ids.len() + 2);
        let (add_bos, add_eos) = match self.around {
            Around::Flags { add_bos, add_eos } if add_special => (add_bos, add_eos),
            _ => (false, false),
        };
        all.extend(self.bos.filter(|_| add_bos));
        all.extend_from_slice(ids);
        all.extend(self.eos_ids.first().filter(|_| add_eos));
        match all.iter().find(|id| **id as usize >= self.vocab_size) {
            Some(&id) => Err(TextError::UnknownToken {
                id,
                vocab_size: self.vocab_size,
            }),
            None => Ok(all),
        }
    }

    /// Turns token ids into text; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TextError::UnknownToken`].
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> Result<String, TextError> {
        let mut bytes = Vec::new();
        for &id in ids {
            if id as usize >= self.vocab_size {
                return Err(TextError::UnknownToken {
                    id,
                    vocab_size: self.vocab_size,
                });
            }
            if !(skip_special && self.is_special(id)) {
                bytes.extend_from_slice(self.vocabulary.bytes(id));
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        // SentencePiece writes a space before the first word; it was never in the text.
        let text = match self.spelling {
            Spelling::SentencePiece => text.strip_prefix(' ').unwrap_or(&text),
            Spelling::ByteLevel => &text,
        };
        Ok(text.to_owned())
    }

    /// Number of token ids the model has; ids from the tokenizer are below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The begin-of-text token.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// Tokens that end a text or a turn.
    pub fn eos_ids(&self) -> &[TokenId] {
        &self.eos_ids
    }

    /// Whether the token steers the model and is no text.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.vocabulary.is_special(id)
    }

    /// Text of one token; parts of characters become U+FFFD.
    pub fn token_text(&self, id: TokenId) -> String {
        String::from_utf8_lossy(self.vocabulary.bytes(id)).into_owned()
    }

    /// Bytes one token stands for; empty for ids without a token.
    pub fn token_bytes(&self, id: TokenId) -> Vec<u8> {
        self.vocabulary.bytes(id).to_vec()
    }

    /// Bytes one token stands for, borrowed.
    pub(super) fn bytes_of(&self, id: TokenId) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// Id of a token in the vocabulary's own spelling.
    pub fn token_to_id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("spelling", &self.spelling)
            .field("vocab_size", &self.vocab_size)
            .field("bos", &self.bos)
            .field("eos_ids", &self.eos_ids)
            .field("around", &self.around)
            .finish_non_exhaustive()
    }
}

/// How the tokens that a decoder reads are spelled.
fn spelling(decoder: &DecoderWrapper) -> Option<Spelling> {
    match decoder {
        DecoderWrapper::ByteLevel(_) => Some(Spelling::ByteLevel),
        DecoderWrapper::Metaspace(_) | DecoderWrapper::ByteFallback(_) => {
            Some(Spelling::SentencePiece)
        }
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().find_map(spelling),
        _ => None,
    }
}

fn vocabulary_of(inner: &Inner, spelling: Spelling, vocab_size: usize) -> Vocabulary {
    let added = inner.get_added_tokens_decoder();
    let by_text = inner.get_vocab(true);
    let mut by_id: HashMap<u32, &str> = by_text
        .iter()
        .map(|(text, id)| (*id, text.as_str()))
        .collect();
    let mut vocabulary = Vocabulary::new();
    // Ids the model has no row for cannot be generated, and are refused in prompts.
    for id in (0u32..).take(vocab_size) {
        match (added.get(&id), by_id.remove(&id)) {
            (Some(token), _) => vocabulary.push_verbatim(&token.content, token.special),
            (None, Some(text)) => vocabulary.push_spelled(text, spelling),
            (None, None) => vocabulary.push_verbatim("", false),
        }
    }
    vocabulary
}

/// Reads `tokenizer_config.json` if there is one.
pub(super) fn tokenizer_config(folder: &Path) -> Result<Option<Value>, TextError> {
    let path = folder.join("tokenizer_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let json = read_bounded(&path, MAX_TOKENIZER_BYTES)?;
    let malformed = |error: serde_json::Error| TextError::Malformed {
        path,
        reason: error.to_string(),
    };
    serde_json::from_slice(&json).map(Some).map_err(malformed)
}

/// Text of `bos_token` and the like: a string, or an object with `content`.
pub(super) fn special_text<'a>(settings: &'a Value, key: &str) -> Option<&'a str> {
    let token = settings.get(key)?;
    token.as_str().or_else(|| token.get("content")?.as_str())
}

pub(super) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>, TextError> {
    let io_error = |source| TextError::Io {
        path: path.to_owned(),
        source,
    };
    let size = fs::metadata(path).map_err(io_error)?.len();
    if size > max_bytes {
        let reason = format!("{size} bytes, at most {max_bytes} are read");
        return Err(TextError::Malformed {
            path: path.to_owned(),
            reason,
        });
    }
    fs::read(path).map_err(io_error)
}
