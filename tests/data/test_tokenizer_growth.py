"""A small tokenizer that would make gigabytes of a short text is refused before it is used."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from nld_train.data.tokenizer import bytes_tokenizer, load_tokenizer, save_tokenizer
from nld_train.errors import UserError


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*steps: dict[str, Any], key: str = "normalizers") -> dict[str, Any]:
    return {"type": "Sequence", key: list(steps)}


def charsmap(*strings: str) -> dict[str, Any]:
    """SentencePiece's table with an empty trie."""
    table = (0).to_bytes(4, "little") + "\0".join(strings).encode() + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


def template(tokens: int, ids: int) -> dict[str, Any]:
    piece = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    known = {"<s>": {"id": "<s>", "ids": [1] * ids, "tokens": ["<s>"] * ids}}
    single, pair = [*[piece] * tokens, text], [text, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known}


DOUBLED = replace("a", "aa")
EXPLODING: dict[str, tuple[dict[str, Any], str]] = {
    "doubled twenty times": ({"normalizer": sequence(*[DOUBLED] * 20)}, "normalizer can make 1,048,576 characters"),
    "doubled two thousand times": ({"normalizer": sequence(*[DOUBLED] * 2000)}, "more than 10^15 characters"),
    "in sequences of sequences": ({"normalizer": sequence(*[sequence(*[DOUBLED] * 4)] * 4)}, "65,536 characters"),
    "one long replacement": ({"normalizer": replace("a", "a" * 9000)}, "9,000 characters"),
    "a regular expression": ({"normalizer": replace(".", "a" * 9000, "Regex")}, "9,001 characters"),
    "what stands nowhere": ({"normalizer": replace("", "a" * 9000)}, "9,001 characters"),
    "prepended": ({"normalizer": {"type": "Prepend", "prepend": "a" * 9000}}, "9,001 characters"),
    "Unicode again and again": ({"normalizer": sequence({"type": "NFKC"}, replace("a", "\ufdfa"), {"type": "NFKC"},
        replace("b", "\ufdfa"), {"type": "NFKD"})}, "5,832 characters"),
    "a precompiled table": ({"normalizer": charsmap("b", "a" * 9000)}, "9,000 characters"),
    "a decoder": ({"decoder": sequence(*[DOUBLED] * 20, key="decoders")}, "decoder can make 1,048,576 characters"),
    "a template": ({"post_processor": template(50, 50)}, "puts 2,500 tokens around a text"),
    "templates": (
        {"post_processor": {"type": "Sequence", "processors": [template(20, 30)] * 2}},
        "puts 1,200 tokens around a text",
    ),
}  # fmt: skip


def written(folder: Path, **changes: Any) -> str:
    definition = {**json.loads(bytes_tokenizer().to_str()), **changes}
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    return str(folder)


@pytest.mark.parametrize("kind", EXPLODING)
def test_a_tokenizer_that_explodes_is_refused(kind: str, tmp_path: Path) -> None:
    changes, expected = EXPLODING[kind]
    with pytest.raises(UserError) as found:
        load_tokenizer(written(tmp_path, **changes))
    assert str(found.value).startswith(f"{tmp_path}/tokenizer.json: ")
    assert expected in str(found.value)


def test_a_token_of_a_million_characters_and_a_billion_extra_ids(tmp_path: Path) -> None:
    model = json.loads(bytes_tokenizer().to_str())["model"]
    for vocabulary in ({**model["vocab"], "x" * 10**6: 260}, [["x" * 10**6, -1.0]]):
        with pytest.raises(UserError, match="has a token of 1,000,000 characters"):
            load_tokenizer(written(tmp_path, model={**model, "vocab": vocabulary}))
    written(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 1000000000}')
    with pytest.raises(UserError, match=r"tokenizer_config\.json: extra_ids adds 1,000,000,000 tokens"):
        load_tokenizer(str(tmp_path))


def test_tokenizers_in_use_are_accepted(tmp_path: Path) -> None:
    save_tokenizer(bytes_tokenizer(), str(tmp_path / "bytes"))
    assert load_tokenizer(str(tmp_path / "bytes"))("ab").input_ids == [101, 102]
    # The normalizers of ALBERT, Llama, T5 and BERT.
    albert = (replace("``", '"'), replace("''", '"'), {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"})
    for normalizer in (
        sequence(*albert, replace(" {2,}", " ", "Regex")),
        sequence({"type": "Prepend", "prepend": "\u2581"}, replace(" ", "\u2581")),
        {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
         "lowercase": True},
        None,
    ):  # fmt: skip
        assert load_tokenizer(written(tmp_path, normalizer=normalizer)) is not None


def test_a_damaged_tokenizer_is_one_line(tmp_path: Path) -> None:
    for content in (b"{", b"[]", b'{"a": ' + b"9" * 5000 + b"}", b"\xff", b"[" * 10**5):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(UserError) as found:
            load_tokenizer(str(tmp_path))
        assert str(found.value).startswith(f"{tmp_path}/tokenizer.json: ")
