"""Tokenizers: bytes, a trained BPE, Hugging Face directories; text never becomes a special token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nld_train.data.tokenizer import (
    Encoder,
    EncoderSpec,
    bytes_tokenizer,
    definition_hash,
    directory_spec,
    load_tokenizer,
    own_spec,
    save_tokenizer,
    tokenizer_hash,
    train_bpe,
)
from nld_train.data.tokenizer_files import VOCABULARY_FILES, copy_tokenizer
from nld_train.errors import UserError

TRICKY = 'x <mask></s><s><pad> = "<mask>"\n\t\0 é 漢字 \U0001f600 </s'


@pytest.fixture(scope="module")
def bytes_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = str(tmp_path_factory.mktemp("bytes") / "tokenizer")
    save_tokenizer(bytes_tokenizer(), directory)
    return directory


def plain(encoder: Encoder, text: str) -> list[int]:
    return encoder.encode([text])[0].tolist()


def test_bytes_have_their_documented_ids(bytes_directory: str) -> None:
    tokenizer = load_tokenizer(bytes_directory)
    assert len(tokenizer) == 260
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id] == [
        0,
        1,
        2,
        3,
    ]
    encoder = Encoder(directory_spec(bytes_directory, append_end=True))
    assert plain(encoder, TRICKY) == [byte + 4 for byte in TRICKY.encode()] + [2]
    assert tokenizer.decode(plain(encoder, TRICKY)[:-1]) == TRICKY
    assert encoder.encode([""])[0].dtype == np.uint16


def test_the_short_way_for_bytes_equals_the_library() -> None:
    encoder = Encoder(own_spec(bytes_tokenizer(), append_end=False))
    texts = [TRICKY, "".join(map(chr, range(1, 0x3000))), "", "a"]
    quick = [ids.tolist() for ids in encoder.encode(texts)]
    encoder._plain_bytes = False
    assert quick == [ids.tolist() for ids in encoder.encode(texts)]


def test_bpe_is_reproducible_and_keeps_special_strings_plain(tmp_path: Path) -> None:
    texts = [f"def function_{i % 7}(argument): return argument + {i}  # <mask> </s>\n" for i in range(300)]
    first, second = train_bpe(texts, 320), train_bpe(iter(texts), 320)
    assert definition_hash(first.to_str()) == definition_hash(second.to_str())
    assert [first.id_to_token(index) for index in range(4)] == ["<pad>", "<s>", "</s>", "<mask>"]
    encoder = Encoder(own_spec(first, append_end=True))
    ids = plain(encoder, TRICKY)
    assert min(ids[:-1]) >= 4
    assert ids[-1] == 2
    assert first.decode(ids[:-1]) == TRICKY
    assert len(plain(encoder, texts[0])) < len(texts[0]) / 2
    with pytest.raises(UserError, match="too small"):
        train_bpe(texts, 200)


def stubborn_tokenizer() -> Tokenizer:
    """Its vocabulary holds "<mask>" as an ordinary entry, and as an added token that is not marked special."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<mask>", "<end>", *sorted(letters)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("<mask>", special=False, normalized=False)])
    return tokenizer


def test_special_strings_that_the_library_would_match_are_cut_apart() -> None:
    tokenizer = stubborn_tokenizer()
    tokenizer.encode_special_tokens = True
    assert 1 in tokenizer.encode("<mask>", add_special_tokens=False).ids  # the trap is real
    encoder = Encoder(EncoderSpec(tokenizer.to_str(), None, (1, 2), tokenizer.get_vocab_size()))
    for text in ("<mask>", "a<mask><mask>\0b", "<end>", "<<mask>>"):
        ids = plain(encoder, text)
        assert not {1, 2} & set(ids)
        assert tokenizer.decode(ids) == text


def test_a_string_that_cannot_be_cut_is_refused() -> None:
    encoder = Encoder(EncoderSpec(stubborn_tokenizer().to_str(), None, (ord("a") - 33 + 3,), 260))
    with pytest.raises(UserError, match="turns plain text into a special token"):
        encoder.encode(["banana"])


def test_half_a_surrogate_pair_becomes_a_question_mark(bytes_directory: str) -> None:
    encoder = Encoder(directory_spec(bytes_directory, append_end=False))
    assert plain(encoder, "a\ud800b") == [ord("a") + 4, ord("?") + 4, ord("b") + 4]


def test_hash_ignores_what_does_not_decide_ids(bytes_directory: str, tmp_path: Path) -> None:
    definition: dict[str, Any] = json.loads(Path(bytes_directory, "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition | {"post_processor": None, "padding": None}))
    assert tokenizer_hash(str(tmp_path)) == tokenizer_hash(bytes_directory)
    definition["added_tokens"][3]["content"] = "<hidden>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    assert tokenizer_hash(str(tmp_path)) != tokenizer_hash(bytes_directory)


def test_a_copy_of_a_vocabulary_without_a_definition_is_whole(tmp_path: Path) -> None:
    """Words in `vocab.txt`, without which the copy would load and know no word."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld\n")
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (source / "model.py").write_text("raise SystemExit")
    names = copy_tokenizer(source, tmp_path / "copy")
    assert sorted(names) == sorted(path.name for path in (tmp_path / "copy").iterdir())
    assert sorted(names) == ["tokenizer_config.json", "vocab.txt"]
    assert tokenizer_hash(str(tmp_path / "copy")) == tokenizer_hash(str(source))
    encoded = [load_tokenizer(str(tmp_path / name)).encode("hello world") for name in ("source", "copy")]
    assert encoded[0] == encoded[1]
    assert {5, 6} <= set(encoded[0])


@pytest.mark.parametrize("name", VOCABULARY_FILES)
def test_every_kind_of_vocabulary_is_copied(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / name).write_bytes(b"vocabulary")
    assert copy_tokenizer(source, tmp_path / "copy") == [name]
    assert tokenizer_hash(str(tmp_path / "copy")) == tokenizer_hash(str(source))


def test_another_tokenizer_is_never_overwritten(tmp_path: Path, bytes_directory: str) -> None:
    directory = str(tmp_path / "tokenizer")
    save_tokenizer(train_bpe(["some text"], 270), directory)
    with pytest.raises(UserError, match="holds another tokenizer"):
        save_tokenizer(bytes_tokenizer(), directory)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    for refused in (tokenizer_hash, load_tokenizer):
        with pytest.raises(UserError) as caught:
            refused(str(tmp_path))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no tokenizer directory"):
        tokenizer_hash(str(tmp_path / "nowhere"))
