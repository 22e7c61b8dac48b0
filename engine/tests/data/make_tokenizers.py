"""Makes tokenizers.json: what SentencePiece and Hugging Face's tokenizers do with some texts.

    pip install sentencepiece tokenizers
    python make_tokenizers.py

`sentencepiece` is a small BPE model trained here with the settings of LLaMA 2's (byte fallback,
digits apart, no normalisation) and the ids it gives. `words` are the pieces that the expressions
of the llama-bpe and qwen2 pre-tokenizers cut texts into, by the library's Python build, which
uses another regular expression engine than the Rust build here does.
"""

import io
import json
from pathlib import Path

import sentencepiece
from tokenizers import Regex, normalizers, pre_tokenizers

CORPUS = """
The loom stands by the window, and the weaver counts the threads of the warp.
Each page of the pattern is a block of sixteen threads; a block is shared until somebody writes to it.
When the shuttle flies, the threads of one block are read together, and then the next block, and the next.
In 1801 the cards of the loom were punched; in 2023 the pages of the cache were not.
    if tokens > budget:
        return tokens - budget
Der Weber webt das Tuch, die Weberin webt es wieder auf. Où est la page? Ici, à côté.
"""

TEXTS = [
    "The weaver reads the next page.",
    " leading and trailing ",
    "two  spaces   three    four\n\n\tlines\r\n",
    "in 2023 and 18011801",
    "à côté de la page où",
    "unknown: \u4f60\u597d \U0001f600 \u0416",
    "camelCase, snake_case; it's they'LL we've",
    "    return tokens - budget\n",
    "e\u0301 combining, \u00a0 no-break\u2003em space",
    "",
    "a",
    " ",
    "!!! ... --->\n\n\nx",
    "1234567 12 1",
    "<s> is no control token here",
    " \n \n  a  \n",
]

DIGITS = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}


def pattern(digits):
    branches = [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        digits,
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
    return Regex("|".join(branches))


def sentence_piece():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.strip("\n").split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=440,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.999,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(processor.get_piece_size())

    def kind(i):
        if processor.is_unknown(i):
            return 2
        if processor.is_control(i):
            return 3
        return 6 if processor.is_byte(i) else 1

    return {
        "tokens": [processor.id_to_piece(i) for i in ids],
        "scores": [processor.get_score(i) for i in ids],
        "types": [kind(i) for i in ids],
        "texts": [
            {"text": text, "ids": processor.encode(text), "decoded": processor.decode(processor.encode(text))}
            for text in TEXTS
        ],
    }


def words(name):
    split = pre_tokenizers.Split(pattern(DIGITS[name]), "isolated")
    normal = normalizers.NFC() if name == "qwen2" else None

    def cut(text):
        text = normal.normalize_str(text) if normal else text
        return [word for word, _ in split.pre_tokenize_str(text)]

    return [{"text": text, "words": cut(text)} for text in TEXTS]


out = {"sentencepiece": sentence_piece(), "words": {name: words(name) for name in DIGITS}}
path = Path(__file__).with_name("tokenizers.json")
path.write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")) + "\n")
print(path, path.stat().st_size, "bytes")
