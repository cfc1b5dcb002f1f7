"""Stop strings are found in the end of a text as they are in the whole of it, by tokenizers of every kind."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nld_train.data.tokenizer import bytes_tokenizer, train_bpe
from nld_train.decoding.algorithms.options import DecodeOptions
from nld_train.decoding.algorithms.outputs import SequenceOutput
from nld_train.decoding.algorithms.stop_strings import stopping

WORDS = [
    *(
        "seven",
        "times",
        "eight",
        "is",
        "don't",
        ",",
        ".",
        "",
        "",
        "def",
        "f(x):\n\n",
        "return",
        "\n\nQuestion:",
        "</s>",
    ),
    *(
        "r\u00e9sum\u00e9",
        "\u4e2d\u6587\u5b57",
        "\u20ac",
        "\U0001f600\U0001f680",
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    ),
]
ToText = Callable[[Sequence[int]], str]


def random_text(draw: random.Random, words: int) -> str:
    return "".join(draw.choice(WORDS) + draw.choice((" ", " ", "", "\n")) for _ in range(words))


def byte_fallback_bpe() -> Tokenizer:
    """As SentencePiece makes them: words with their spaces, letters, and bytes for what it has never seen."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    texts = ["seven times eight is resume don't def f(x): return Question:"] * 9
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "</s>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    plain = Tokenizer.from_str(tokenizer.to_str().replace('"special":true', '"special":false'))
    plain.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return plain


def word_pieces() -> Tokenizer:
    """Puts spaces between words, and takes them out before punctuation."""
    pieces = [
        "[UNK]",
        "seven",
        "##s",
        "times",
        "##times",
        "eight",
        "is",
        ".",
        ",",
        "'",
        "t",
        "don",
        "##don",
        "n",
        "##n",
    ]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def trained_bpe() -> Tokenizer:
    return train_bpe([random_text(random.Random(7), 400)], 330)


KINDS = [bytes_tokenizer, trained_bpe, byte_fallback_bpe, word_pieces]


def whole_text_stop(to_text: ToText, tokens: list[int], strings: Sequence[str]) -> int | None:
    """By the whole text after each token."""
    for count in range(1, len(tokens) + 1):
        text = to_text(tokens[:count])
        if any(string in text for string in strings):
            return count
    return None


def chunks(draw: random.Random, tokens: list[int]) -> list[list[int]]:
    found, begin = [], 0
    while begin < len(tokens):
        size = draw.randint(1, 6)
        found.append(tokens[begin : begin + size])
        begin += size
    return found


def stop_in_sequence(draw: random.Random, to_text: ToText, tokens: list[int], strings: Sequence[str]) -> int | None:
    """By an output that gets a few tokens at a time, some checked before they are committed, as in diffusion."""
    row = SequenceOutput(len(tokens) + 1, DecodeOptions(len(tokens) + 1, stop_strings=tuple(strings), to_text=to_text))
    for chunk in chunks(draw, tokens):
        for certain in sorted(draw.sample(range(1, len(chunk) + 1), draw.randint(0, len(chunk)))):
            if row.stop_after(chunk[:certain]) is not None:
                chunk = chunk[:certain]
                break
        expected = row.stop_after(chunk) or len(chunk)
        assert row.commit(chunk, [1] * len(chunk), [True] * len(chunk)) == expected
        if row.finish == "stop":
            return len(row.tokens)
    return None


def some_tokens(draw: random.Random, tokenizer: Tokenizer) -> list[int]:
    """A text's, any at all, or both in turn or one after the other."""
    text = list(tokenizer.encode(random_text(draw, 30)).ids)
    garbage = [draw.randrange(tokenizer.get_vocab_size()) for _ in range(60)]
    # One script, of which a tokenizer may know the bytes alone.
    letters = list(tokenizer.encode("".join(chr(draw.randrange(0x0E01, 0x0E30)) for _ in range(60))).ids)
    mixed = [token for pair in zip(text, garbage, strict=False) for token in pair]
    return draw.choice([text, garbage, mixed, letters + text, letters + garbage[:1] + letters[:9] + text])


def some_strings(draw: random.Random, whole: str) -> list[str]:
    """Parts of the text, most of them near its end, and what may stand nowhere."""
    found = [draw.choice(("\n\nQ", "never", "seven is", "\ufffd\ufffdx"))]
    for _ in range(draw.randint(0, 2)):
        length = draw.choice((1, 2, 3, 8, 30))
        begin = max(0, len(whole) - draw.choice((1, 10, 40, len(whole))) - length)
        found.append(whole[begin : begin + length] or "never")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_a_text_stops_where_the_whole_text_does(kind: Callable[[], Tokenizer]) -> None:
    tokenizer, draw, stops = kind(), random.Random(0), []
    to_text: ToText = lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)  # noqa: E731
    for _ in range(300):
        tokens = some_tokens(draw, tokenizer)
        strings = some_strings(draw, to_text(tokens))
        stops.append(whole_text_stop(to_text, tokens, strings))
        assert stop_in_sequence(draw, to_text, tokens, strings) == stops[-1], (tokens, strings)
    assert len(set(stops)) > 20


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_long_text_costs_little_per_token(kind: Callable[[], Tokenizer]) -> None:
    tokenizer, decoded = kind(), []

    def to_text(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return tokenizer.decode(list(ids), skip_special_tokens=True)

    tokens = list(tokenizer.encode(random_text(random.Random(1), 600)).ids)
    assert stop_in_sequence(random.Random(2), to_text, tokens, ["never said"]) is None
    assert sum(decoded) < 150 * len(tokens)
    assert max(decoded[len(decoded) // 2 :]) < 150 < len(tokens) // 4


def test_special_tokens_stop_as_tokens() -> None:
    class Known:
        def get_added_vocab(self) -> dict[str, int]:
            return {"<end>": 9}

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return "".join(chr(97 + token) for token in ids if token != 9)

    options = DecodeOptions(5, **stopping(Known(), ["<end>", "bc"], (2, 9)))
    assert options.stop_tokens == (2, 9)
    assert SequenceOutput(5, options).stop_after([0, 9, 1]) == 2
    assert SequenceOutput(5, options).stop_after([1, 0, 1, 2]) == 4
