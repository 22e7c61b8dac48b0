//! Tokenizers rebuilt from the metadata of a GGUF file.

use std::collections::{HashMap, HashSet};

use pageloom_model_runner::weights::Gguf;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as NormalizerSequence};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::TextError;
use super::vocabulary::{Spelling, Vocabulary};

const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";

/// Longest SentencePiece token that is split in all ways to find its merges, in bytes; real ones
/// have tens. Work grows with the square of it.
const MAX_PIECE_BYTES: usize = 1024;

/// Kinds of token in `tokenizer.ggml.token_type`.
mod kind {
    pub(super) const NORMAL: i64 = 1;
    pub(super) const CONTROL: i64 = 3;
    pub(super) const USER_DEFINED: i64 = 4;
}

/// What a file's metadata becomes.
pub(super) struct Rebuilt {
    pub(super) tokenizer: Tokenizer,
    pub(super) vocabulary: Vocabulary,
    pub(super) spelling: Spelling,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
}

/// Builds the tokenizer a GGUF file describes.
pub(super) fn rebuild(gguf: &Gguf) -> Result<Rebuilt, TextError> {
    let model = gguf.str("tokenizer.ggml.model")?;
    let model = model.ok_or_else(|| missing(gguf, "tokenizer.ggml.model"))?;
    let tokens = Tokens::read(gguf)?;
    let (mut tokenizer, spelling, adds_bos) = match model {
        "gpt2" => {
            let (tokenizer, adds_bos) = byte_level_bpe(gguf, &tokens)?;
            (tokenizer, Spelling::ByteLevel, adds_bos)
        }
        "llama" => (
            sentence_piece_bpe(gguf, &tokens)?,
            Spelling::SentencePiece,
            true,
        ),
        other => {
            return Err(TextError::Unsupported {
                path: gguf.path().to_owned(),
                what: "tokenizer.ggml.model",
                found: other.to_owned(),
                supported: "gpt2, llama",
            });
        }
    };
    let added = |wanted: i64, special: bool| -> Vec<AddedToken> {
        let of_kind = tokens.iter().filter(|(_, kind)| *kind == wanted);
        of_kind
            .map(|(text, _)| AddedToken::from(text, special).normalized(false))
            .collect()
    };
    tokenizer.add_special_tokens(&added(kind::CONTROL, true));
    tokenizer.add_tokens(&added(kind::USER_DEFINED, false));

    let mut vocabulary = Vocabulary::new();
    for (text, kind) in tokens.iter() {
        match kind {
            kind::CONTROL => vocabulary.push_verbatim(text, true),
            kind::USER_DEFINED => vocabulary.push_verbatim(text, false),
            _ => vocabulary.push_spelled(text, spelling),
        }
    }
    Ok(Rebuilt {
        tokenizer,
        vocabulary,
        spelling,
        add_bos: gguf
            .bool("tokenizer.ggml.add_bos_token")?
            .unwrap_or(adds_bos),
        add_eos: gguf.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
    })
}

fn missing(gguf: &Gguf, key: &str) -> TextError {
    TextError::Missing {
        path: gguf.path().to_owned(),
        what: format!("`{key}`"),
    }
}

fn malformed(gguf: &Gguf, reason: impl ToString) -> TextError {
    TextError::Malformed {
        path: gguf.path().to_owned(),
        reason: reason.to_string(),
    }
}

/// The tokens by id, borrowed from the file.
struct Tokens<'a> {
    texts: Vec<&'a str>,
    kinds: Vec<i64>,
}

impl<'a> Tokens<'a> {
    fn read(gguf: &'a Gguf) -> Result<Tokens<'a>, TextError> {
        let texts = strings(gguf, TOKENS)?.ok_or_else(|| missing(gguf, TOKENS))?;
        let key = "tokenizer.ggml.token_type";
        let kinds = match gguf.array(key)? {
            Some(kinds) => kinds
                .ints()
                .ok_or_else(|| malformed(gguf, format!("`{key}` does not hold integers")))?
                .collect(),
            None => vec![kind::NORMAL; texts.len()],
        };
        if kinds.len() != texts.len() {
            let reason = format!("{} tokens but {} in `{key}`", texts.len(), kinds.len());
            return Err(malformed(gguf, reason));
        }
        Ok(Tokens { texts, kinds })
    }

    fn iter(&self) -> impl Iterator<Item = (&'a str, i64)> {
        self.texts.iter().copied().zip(self.kinds.iter().copied())
    }

    /// Id of each text; the first id where several tokens share a text.
    fn ids(&self) -> HashMap<&'a str, u32> {
        let mut ids = HashMap::with_capacity(self.texts.len());
        for (text, id) in self.texts.iter().zip(0u32..) {
            ids.entry(*text).or_insert(id);
        }
        ids
    }
}

fn strings<'a>(gguf: &'a Gguf, key: &str) -> Result<Option<Vec<&'a str>>, TextError> {
    let Some(array) = gguf.array(key)? else {
        return Ok(None);
    };
    let strings = array.strings();
    let strings =
        strings.ok_or_else(|| malformed(gguf, format!("`{key}` does not hold strings")))?;
    Ok(Some(strings.collect()))
}

fn build_bpe(
    gguf: &Gguf,
    ids: &HashMap<&str, u32>,
    merges: Vec<(String, String)>,
    options: impl FnOnce(tokenizers::models::bpe::BpeBuilder) -> tokenizers::models::bpe::BpeBuilder,
) -> Result<Tokenizer, TextError> {
    let vocab: HashMap<String, u32> = ids
        .iter()
        .map(|(text, id)| ((*text).to_owned(), *id))
        .collect();
    let vocab: tokenizers::models::bpe::Vocab = vocab.into_iter().collect();
    let builder = options(BPE::builder().vocab_and_merges(vocab, merges));
    let bpe = builder.build().map_err(|error| malformed(gguf, error))?;
    Ok(Tokenizer::new(bpe))
}

/// GPT-2 style byte-level BPE, and whether its kind puts the begin token first by default.
fn byte_level_bpe(gguf: &Gguf, tokens: &Tokens<'_>) -> Result<(Tokenizer, bool), TextError> {
    let pre = gguf
        .str("tokenizer.ggml.pre")?
        .ok_or_else(|| missing(gguf, "tokenizer.ggml.pre"))?;
    let kind = PreTokenizer::named(pre).ok_or_else(|| TextError::Unsupported {
        path: gguf.path().to_owned(),
        what: "tokenizer.ggml.pre",
        found: pre.to_owned(),
        supported: PreTokenizer::NAMES,
    })?;
    let merges = strings(gguf, MERGES)?.ok_or_else(|| missing(gguf, MERGES))?;
    let split = |merge: &str| {
        let (left, right) = merge.split_once(' ')?;
        Some((left.to_owned(), right.to_owned()))
    };
    let pairs: Option<Vec<_>> = merges.iter().map(|merge| split(merge)).collect();
    let pairs = pairs.ok_or_else(|| malformed(gguf, format!("`{MERGES}` holds no pairs")))?;
    let ignore_merges = kind == PreTokenizer::Llama3;
    let mut tokenizer = build_bpe(gguf, &tokens.ids(), pairs, |builder| {
        builder.ignore_merges(ignore_merges)
    })?;
    let pre_tokenizer = kind.build().map_err(|error| malformed(gguf, error))?;
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    if kind == PreTokenizer::Qwen2 {
        tokenizer.with_normalizer(Some(NFC));
    }
    Ok((tokenizer, kind == PreTokenizer::Llama3))
}

/// How text is cut into words before BPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PreTokenizer {
    Gpt2,
    SmolLm,
    Llama3,
    Qwen2,
}

impl PreTokenizer {
    const NAMES: &'static str = "gpt-2, smollm, llama-bpe, qwen2";

    fn named(name: &str) -> Option<PreTokenizer> {
        Some(match name {
            "gpt-2" => PreTokenizer::Gpt2,
            "smollm" => PreTokenizer::SmolLm,
            "llama-bpe" | "llama3" | "llama-v3" => PreTokenizer::Llama3,
            "qwen2" | "deepseek-r1-qwen" => PreTokenizer::Qwen2,
            _ => return None,
        })
    }

    fn build(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let gpt2 = ByteLevel::new(false, false, true);
        let digits = match self {
            PreTokenizer::Gpt2 => return Ok(gpt2.into()),
            PreTokenizer::SmolLm => {
                return Ok(Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into());
            }
            PreTokenizer::Llama3 => r"\p{N}{1,3}",
            PreTokenizer::Qwen2 => r"\p{N}",
        };
        // The expression of the models' published tokenizer.json files, branch by branch:
        // contractions, words with one sign before them, numbers, signs, line ends, spaces.
        let words = [
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            r"[^\r\n\p{L}\p{N}]?\p{L}+",
            digits,
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        ];
        let pattern = SplitPattern::Regex(words.join("|"));
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
        let letters = ByteLevel::new(false, false, false);
        Ok(Sequence::new(vec![split.into(), letters.into()]).into())
    }
}

/// SentencePiece's BPE: the pair whose joined token has the best score is merged first.
///
/// The library merges by rank, so each token's splits into two tokens are listed in order of the
/// token's score: the conversion transformers does for these models.
fn sentence_piece_bpe(gguf: &Gguf, tokens: &Tokens<'_>) -> Result<Tokenizer, TextError> {
    let key = "tokenizer.ggml.scores";
    let scores = gguf.array(key)?.ok_or_else(|| missing(gguf, key))?;
    let scores = scores
        .floats()
        .ok_or_else(|| malformed(gguf, format!("`{key}` holds no floats")))?;
    let scores: Vec<f64> = scores.collect();
    if scores.len() != tokens.texts.len() {
        let reason = format!(
            "{} tokens but {} in `{key}`",
            tokens.texts.len(),
            scores.len()
        );
        return Err(malformed(gguf, reason));
    }
    let ids = tokens.ids();
    let normal: HashSet<&str> = tokens
        .iter()
        .filter(|(_, kind)| *kind == kind::NORMAL)
        .map(|(text, _)| text)
        .collect();
    let mut ranked: Vec<(f64, u32, u32)> = Vec::new();
    for (&text, &score) in tokens.texts.iter().zip(&scores) {
        if !normal.contains(text) {
            continue;
        }
        if text.len() > MAX_PIECE_BYTES {
            return Err(malformed(gguf, format!("a token of {} bytes", text.len())));
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if normal.contains(left) && normal.contains(right) {
                ranked.push((score, ids[left], ids[right]));
            }
        }
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    let text = |id: u32| tokens.texts[id as usize].to_owned();
    let merges = ranked
        .into_iter()
        .map(|(_, left, right)| (text(left), text(right)))
        .collect();

    let unknown = gguf.uint("tokenizer.ggml.unknown_token_id")?.unwrap_or(0);
    let unknown = usize::try_from(unknown)
        .ok()
        .and_then(|id| tokens.texts.get(id).copied());
    let mut tokenizer = build_bpe(gguf, &ids, merges, |builder| {
        let builder = builder.byte_fallback(true).fuse_unk(true);
        match unknown {
            Some(text) => builder.unk_token(text.to_owned()),
            None => builder,
        }
    })?;
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if gguf
        .bool("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true)
    {
        normalizers.push(Prepend::new("▁".to_owned()).into());
    }
    let spaces = Replace::new(" ", "▁").map_err(|error| malformed(gguf, error))?;
    normalizers.push(spaces.into());
    tokenizer.with_normalizer(Some(NormalizerSequence::new(normalizers)));
    Ok(tokenizer)
}

#[cfg(test)]
mod tests;
