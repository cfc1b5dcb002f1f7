"""Ids made word by word are those of the tokenizers library, for every kind of byte-level BPE and any text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from nld_train.data import word_encoder as words
from nld_train.data.tokenizer import SPECIAL_TOKENS, Encoder, own_spec, train_bpe

# Those of GPT-2 (within `ByteLevel`), of Llama 3 and of Mistral's Tekken.
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"gpt2": None, "llama": LLAMA, "tekken": TEKKEN}


def sources() -> list[str]:
    """Python files, some with other characters than ASCII."""
    paths = sorted(Path(__file__).parents[2].glob("nld_train/d*/**/*.py"))[:10]
    return [path.read_text() for path in paths] + [
        "Ω ≈ ½ d'été, naïve ½²Ⅷ — “quoted” 日本語 中文\uff0c한국어 👍🏽 e\u0301 \u017f's\n\n  x\t\ty  "
    ]


def trained(pattern: str | None) -> Tokenizer:
    tokenizer = train_bpe(sources(), 700)
    if pattern is None:
        return tokenizer
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sources(), trainer=trainer)
    return tokenizer


def random_texts(count: int) -> list[str]:
    """Short texts of characters of all classes, close together; some of ASCII alone."""
    generator = np.random.default_rng(7)
    common = list(" \n\r\t'sStTlLdD0159.,!_-/\"\x00\x1c\x1f\x7f\x85\xa0\u2028éßµªº²½\u0301ǅʰ")
    texts = []
    for number in range(count):
        size = int(generator.integers(1, 40))
        rare = [chr(code) for code in generator.integers(0, sys.maxunicode, size) if not 0xD800 <= code < 0xE000]
        drawn = generator.choice(np.array(common if number % 2 else common[:24]), 2 * size).tolist()
        texts.append("".join(generator.permutation(np.array(drawn + (rare if number % 4 == 3 else [])))))
    return texts


@pytest.fixture(scope="module", params=sorted(PATTERNS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return trained(PATTERNS[request.param])


def by_library(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    tokenizer.encode_special_tokens = True
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def test_ids_are_those_of_the_library(tokenizer: Tokenizer) -> None:
    encoder = Encoder(own_spec(tokenizer, append_end=False))
    assert encoder._words is not None
    texts = [*sources(), *random_texts(800), "", "<mask></s>", "a<mask>b"]
    # Twice: the words of the second time are in the dictionary.
    for _ in range(2):
        assert [ids.tolist() for ids in encoder.encode(texts)] == by_library(tokenizer, texts)
    alone = [encoder._words.encode(text) for text in sources()]
    assert all(ids is not None for ids in alone)


def test_most_random_texts_need_no_library_either(tokenizer: Tokenizer) -> None:
    """Else the comparison above would compare the library with itself."""
    encoder = words.word_encoder(tokenizer, np.int32, ())
    assert encoder is not None
    found = [encoder.encode(text) is not None for text in random_texts(400)]
    assert np.mean(found) > 0.6


def test_a_character_that_is_split_otherwise_goes_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the library's Unicode had no letter é and no digit 7."""
    tokenizer = trained(None)
    monkeypatch.setattr(words, "_BYTE_LEVEL", words._BYTE_LEVEL.replace(r"\p{L}+", r"(?:(?!é)\p{L})+"))
    encoder = words.word_encoder(tokenizer, np.int32, ())
    assert encoder is not None
    assert encoder.encode("caf\u00e9") is None
    assert encoder.encode("cafe").tolist() == by_library(tokenizer, ["cafe"])[0]
    monkeypatch.setattr(words, "_BYTE_LEVEL", words._BYTE_LEVEL.replace(r"\p{N}+", r"[0-689]+"))
    encoder = words.word_encoder(tokenizer, np.int32, ())
    assert encoder is not None
    # One character of ASCII is enough for all of ASCII, which is not looked at again.
    assert encoder.encode("cafe") is None


def test_text_that_no_word_matches_goes_to_the_library() -> None:
    tokenizer = trained(r"\p{L}+")
    encoder = words.word_encoder(tokenizer, np.int32, ())
    assert encoder is not None
    assert encoder.encode("two words") is None
    texts = ["two words", "one"]
    whole = Encoder(own_spec(tokenizer, append_end=False))
    assert [ids.tolist() for ids in whole.encode(texts)] == by_library(tokenizer, texts)


def test_words_that_become_special_tokens_go_to_the_library() -> None:
    """A vocabulary with a special string as an ordinary entry: `Encoder` splits it."""
    tokenizer = trained(None)
    letter = tokenizer.encode("q", add_special_tokens=False).ids[0]
    encoder = words.word_encoder(tokenizer, np.int32, (letter,))
    assert encoder is not None
    assert encoder.encode("q") is None
    assert encoder.encode("a") is not None


def test_the_dictionary_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_MOST_WORDS", 8)
    tokenizer = trained(None)
    encoder = words.word_encoder(tokenizer, np.int32, ())
    assert encoder is not None
    text = " ".join(f"word{number}" for number in range(40)) + " " + "x" * 100
    assert encoder.encode(text).tolist() == by_library(tokenizer, [text])[0]
    assert len(encoder._ids) <= 8


def changed(change: Any) -> Tokenizer:
    tokenizer = trained(None)
    change(tokenizer)
    return tokenizer


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.NFC()),
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", None),
        lambda tokenizer: tokenizer.add_tokens(["an added token"]),
        lambda tokenizer: setattr(tokenizer.model, "dropout", 0.1),
        lambda tokenizer: setattr(
            tokenizer,
            "pre_tokenizer",
            pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(r"(a)|."), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
            ),
        ),
    ],
)
def test_other_tokenizers_have_no_word_encoder(change: Any) -> None:
    assert words.word_encoder(changed(change), np.int32, ()) is None


@pytest.mark.parametrize("pattern", [words._BYTE_LEVEL, LLAMA, TEKKEN])
def test_the_pattern_of_ascii_matches_the_same(pattern: str) -> None:
    import re

    written = words.ascii_pattern(pattern)
    assert written is not None
    for text in (text for text in [*sources(), *random_texts(300)] if text.isascii()):
        assert re.findall(written, text) == regex.findall(pattern, text)


@pytest.mark.parametrize("pattern", [r"\d+", r"\w", r"\P{L}", r"[\p{M}]", r"\p{Lo}", r"[a\S]"])
def test_a_pattern_that_cannot_be_written_for_ascii(pattern: str) -> None:
    assert words.ascii_pattern(pattern) is None
