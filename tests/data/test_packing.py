"""Conversations are packed whole, each once, as a pure function of set, settings and seed; damage is found."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from chat_sets import (
    Conversation,
    Turn,
    answers_of,
    random_conversations,
    tokens_of,
    write_chat_manifest,
    write_chat_set,
)
from tiny_runs import composed

from nld_train.data import conversation_lengths, packing
from nld_train.data.bins import pack
from nld_train.data.chat_set import ChatSet
from nld_train.data.conversation_lengths import ConversationPacking, mean_noisy_ratio, measure_range
from nld_train.data.conversations import PackedConversations
from nld_train.data.packing import estimate_facts, make_packing
from nld_train.data.packing_files import packing_directory, packing_key
from nld_train.data.plan_facts import data_facts
from nld_train.errors import UserError
from nld_train.masking.noisy_stream import answer_stream

SETTINGS = [("answer", True), ("answer", False), ("document", True), ("document", False)]


def naive_noisy_length(answers: Sequence[bool], size: int, blocks: str, fill: bool) -> int:
    """Tokens of the blocks of the answers of one conversation, answer by answer and block by block."""
    total, index = 0, 0
    while index < len(answers):
        if not answers[index]:
            index += 1
            continue
        end = index
        while end < len(answers) and answers[end]:
            end += 1
        begin = index if blocks == "answer" else index // size * size
        while begin < end:
            total += size if fill else min(size, end - begin)
            begin += size
        index = end
    return total


def shortened(conversation: Conversation, most: int) -> Conversation | None:
    """A conversation without its first turns, as few of them as will do, and with its system prompt."""
    system = [turn for turn in conversation if turn.role == "system"]
    rest = list(conversation[len(system) :])
    while sum(len(turn.tokens) for turn in (*system, *rest)) > most:
        rest.pop(0)
        while rest and rest[0].role != "user":
            rest.pop(0)
        if not rest:
            return None
    return [*system, *rest] if any(turn.answer for turn in rest) else None


@pytest.mark.parametrize("chunk", [1, 50, 1 << 22])
@pytest.mark.parametrize(("blocks", "fill"), SETTINGS)
def test_lengths_equal_a_naive_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: str, fill: bool, chunk: int
) -> None:
    monkeypatch.setattr(conversation_lengths, "_CHUNK_TOKENS", chunk)
    monkeypatch.setattr("nld_train.data.token_index._CHUNK", 7)
    conversations = random_conversations(1, 40)
    # Answers that touch across a border, empty conversations, and one without an answer.
    conversations[3:3] = [[Turn("assistant", [7, 8, 2], 3)], [Turn("assistant", [9, 2], 2)], [], [Turn("user", [4, 4])]]
    conversations.append([])
    prefix = write_chat_set(tmp_path / "set", conversations)
    for size in (1, 4, 32):
        settings = ConversationPacking(1000, 1000, size, blocks, fill)  # type: ignore[arg-type]
        rows = np.concatenate([rows for rows, _ in measure_range(prefix, settings, range(len(conversations)))])
        expected = [naive_noisy_length(answers_of(each), size, blocks, fill) for each in conversations]
        assert rows["noisy"].tolist() == expected
        for each, length in zip(conversations, expected, strict=True):
            parts = np.zeros(len(answers_of(each)), np.int64), np.array(answers_of(each), bool)
            assert len(answer_stream(*parts, size, blocks, fill).sources) == length  # type: ignore[arg-type]
        lengths = [len(tokens_of(each)) for each in conversations]
        assert rows["length"].tolist() == lengths
        assert rows["clean"].tolist() == [
            length if noisy else 0 for length, noisy in zip(lengths, expected, strict=True)
        ]
        part = np.concatenate([rows for rows, _ in measure_range(prefix, settings, range(5, 31))])
        assert part.tolist() == rows[5:31].tolist()
        used = [length for length, noisy in zip(lengths, expected, strict=True) if noisy]
        assert mean_noisy_ratio(prefix, size, blocks, fill) == sum(expected) / sum(used)  # type: ignore[arg-type]


@pytest.mark.parametrize("long", ["leave_out", "shorten"])
@pytest.mark.parametrize("noisy_length", [0, 48, 96])
def test_each_conversation_is_whole_and_in_one_sample(tmp_path: Path, long: str, noisy_length: int) -> None:
    conversations = random_conversations(2, 120, longest=15)
    prefix, length = write_chat_set(tmp_path / "set", conversations), 80
    settings = ConversationPacking(length, noisy_length, 8, long=long)  # type: ignore[arg-type]
    facts = make_packing(prefix, settings, 3, f"{tmp_path}/packing")
    samples = PackedConversations(prefix, settings, 3, f"{tmp_path}/packing")
    found = []
    for index in range(len(samples)):
        part = samples.read(index)
        assert part.answers is not None
        assert len(part.tokens) == len(part.documents) == len(part.answers) == length + 1
        ordinals = part.documents.tolist()
        assert list(dict.fromkeys(ordinals)) == list(range(ordinals[-1] + 1))
        padding = part.documents == ordinals[-1]
        assert padding[-1], "the token after the last one belongs to no conversation"
        assert not part.answers[padding].any()
        assert set(part.tokens[padding]) <= set(part.tokens[~padding])
        noisy = 0
        for ordinal in range(ordinals[-1]):
            chosen = part.documents == ordinal
            found.append((part.tokens[chosen].tolist(), part.answers[chosen].tolist()))
            noisy += naive_noisy_length(found[-1][1], 8, "answer", True)
        assert noisy <= noisy_length or not noisy_length or ordinals[-1] == 1
    with pytest.raises(IndexError):
        samples.read(len(samples))
    expected = []
    for each in conversations:
        kept: Conversation | None = each
        if len(tokens_of(each)) > length:
            kept = shortened(each, length) if long == "shorten" else None
        if kept is not None:
            expected.append((tokens_of(kept), answers_of(kept)))
    assert sorted(found) == sorted(expected)
    too_long = sum(len(tokens_of(each)) > length for each in conversations)
    assert too_long > 5
    assert (facts.conversations, facts.used, facts.left_out) == (120, len(expected), 120 - len(expected))
    assert facts.shortened == len(expected) - (120 - too_long)
    assert (facts.shortened > 0) == (long == "shorten")
    assert facts.samples == len(samples)
    assert facts.clean_tokens == sum(len(tokens) for tokens, _ in expected)
    assert estimate_facts(prefix, settings) == facts, "the set is small enough to be counted whole"


def test_a_shortened_conversation_keeps_its_system_prompt_and_whole_turns(tmp_path: Path) -> None:
    """By hand: of three exchanges the first must go, and then the conversation fits."""
    system, user, assistant = Turn("system", [10, 11]), Turn("user", [20, 21, 22]), Turn("assistant", [5, 30, 2], 2)
    last = [Turn("user", [40]), Turn("assistant", [5, 50, 51, 2], 3)]
    conversation = [system, user, assistant, user, assistant, *last]
    cut_user_turn = [user, Turn("user", [23] * 30)]
    prefix = write_chat_set(tmp_path / "set", [conversation, cut_user_turn, [Turn("assistant", [9] * 40, 40)]])
    assert ChatSet(prefix).pieces(0, 19, 18) == [(0, 2), (8, 11)]
    assert ChatSet(prefix).pieces(0, 19, 7) == [(0, 2), (14, 5)]
    assert ChatSet(prefix).pieces(0, 19, 6) is None
    settings = ConversationPacking(14, 64, 4, long="shorten")
    facts = make_packing(prefix, settings, 0, f"{tmp_path}/packing")
    part = PackedConversations(prefix, settings, 0, f"{tmp_path}/packing").read(0)
    expected = [10, 11, 20, 21, 22, 5, 30, 2, 40, 5, 50, 51, 2]
    assert part.tokens[:13].tolist() == expected
    assert (facts.used, facts.shortened, facts.too_long, facts.without_answers) == (1, 1, 1, 1)
    assert facts.noisy_tokens == 8


@pytest.mark.parametrize(("capacity", "rate"), [(0, 0.985), (512, 0.975), (448, 0.975), (256, 0.0)])
def test_both_streams_become_full(capacity: int, rate: float) -> None:
    generator = np.random.default_rng(1)
    prompts, answers = generator.integers(8, 40, 4096), generator.integers(2, 40, 4096)
    clean, noisy = prompts + answers, -(-answers // 32) * 32 * (capacity > 0)
    samples = pack(clean, noisy, 512, capacity)
    assert sorted(each for sample in samples for each in sample) == list(range(4096))
    assert all(clean[sample].sum() <= 512 and noisy[sample].sum() <= capacity for sample in samples)
    needed = max(clean.sum() / 512, noisy.sum() / max(1, capacity))
    assert len(samples) * max(rate, 0.97) <= needed + 1


def test_tokens_of_long_samples_do_not_overflow() -> None:
    lengths = np.full(6, 1 << 19, np.int32)
    assert sorted(map(len, pack(lengths, lengths, 1 << 20, 1 << 20))) == [2, 2, 2]


def files(prefix: str, settings: ConversationPacking, seed: int, folder: Path) -> list[bytes]:
    directory = packing_directory(prefix, str(folder), packing_key(prefix, settings, seed))
    return [path.read_bytes() for path in sorted(directory.iterdir())]


def test_the_packing_does_not_depend_on_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = write_chat_set(tmp_path / "set", random_conversations(4, 300))
    settings = ConversationPacking(200, 200, 8)
    monkeypatch.setattr(packing, "_SMALLEST_WINDOW", 32)
    monkeypatch.setattr(packing, "_LARGEST_WINDOW", 32)
    advanced: list[int] = []
    make_packing(prefix, settings, 5, f"{tmp_path}/one", 1, advanced.append)
    assert sum(advanced) == 600
    monkeypatch.setattr(packing, "_JOB_CONVERSATIONS", 64)
    make_packing(prefix, settings, 5, f"{tmp_path}/many", 1)
    make_packing(prefix, settings, 5, f"{tmp_path}/parallel", 2)
    one, many, parallel = (files(prefix, settings, 5, tmp_path / name) for name in ("one", "many", "parallel"))
    assert one == many == parallel
    make_packing(prefix, settings, 6, f"{tmp_path}/one")
    assert files(prefix, settings, 6, tmp_path / "one")[0] != one[0], "another seed, another packing"


def test_a_packing_is_made_once_and_again_where_it_is_damaged(tmp_path: Path) -> None:
    prefix, folder = write_chat_set(tmp_path / "set", random_conversations(5, 50)), tmp_path / "packing"
    settings = ConversationPacking(100, 100, 8)
    facts = make_packing(prefix, settings, 1, str(folder))
    (directory,) = folder.iterdir()
    content = files(prefix, settings, 1, folder)
    times = [path.stat().st_mtime_ns for path in sorted(directory.iterdir())]
    assert make_packing(prefix, settings, 1, str(folder)) == facts
    assert [path.stat().st_mtime_ns for path in sorted(directory.iterdir())] == times
    for name in ("conversations.bin", "samples.bin", "packing.json"):
        raw = bytearray((directory / name).read_bytes())
        for damaged in (raw[:-8], raw[:16] + bytes([raw[16] ^ 1]) + raw[17:], None):
            (directory / name).unlink() if damaged is None else (directory / name).write_bytes(damaged)
            assert make_packing(prefix, settings, 1, str(folder)) == facts
            assert files(prefix, settings, 1, folder) == content
    (directory / "samples.bin").write_bytes(content[2][:-8])
    with pytest.raises(UserError, match="is damaged"):
        PackedConversations(prefix, settings, 1, str(folder))
    (directory / "samples.bin").unlink()
    with pytest.raises(UserError, match=r"the packing of .*set, cannot be read \(No such file"):
        PackedConversations(prefix, settings, 1, str(folder))
    assert [path.name for path in folder.iterdir()] == [directory.name], "nothing half-written is left"


def test_whatever_determines_samples_is_in_the_fingerprint(tmp_path: Path) -> None:
    conversations = random_conversations(6, 50)
    prefix = write_chat_set(tmp_path / "set", conversations)
    settings = [
        ConversationPacking(100, 100, 8),
        ConversationPacking(101, 100, 8),
        ConversationPacking(100, 101, 8),
        ConversationPacking(100, 100, 9),
        ConversationPacking(100, 100, 8, blocks="document"),
        ConversationPacking(100, 100, 8, fill=False),
        ConversationPacking(100, 100, 8, long="shorten"),
        ConversationPacking(100, 0, 8),
    ]
    keys = [packing_key(prefix, each, 1) for each in settings] + [packing_key(prefix, settings[0], 2)]
    assert len(set(keys)) == len(keys)
    assert packing_key(prefix, ConversationPacking(100, 0, 9, fill=False), 1) == keys[7], "no blocks, no difference"
    bits = bytearray(Path(f"{prefix}.answers.bin").read_bytes())
    bits[0] ^= 1
    Path(f"{prefix}.answers.bin").write_bytes(bits)
    assert packing_key(prefix, settings[0], 1) != keys[0]
    make_packing(prefix, settings[0], 1, f"{tmp_path}/packing")
    samples = PackedConversations(prefix, settings[0], 1, f"{tmp_path}/packing")
    raw = pickle.dumps(samples)
    assert len(raw) < 600
    assert pickle.loads(raw).read(1).tokens.tolist() == samples.read(1).tokens.tolist()


def test_memory_does_not_grow_with_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    from nld_train.data.token_index import IndexHeader, create_set, write_documents

    count = 200_000
    create_set(f"{tmp_path}/set", IndexHeader(np.uint16, count, count), 4 * count)
    tokens = np.full(4 * count, 7, np.uint16)
    write_documents(f"{tmp_path}/set", IndexHeader(np.uint16, count, count), 0, 0, tokens, np.full(count, 4))
    np.full(count // 2, 0b1100_1100, np.uint8).tofile(f"{tmp_path}/set.answers.bin")
    monkeypatch.setattr(packing, "_LARGEST_WINDOW", packing._SMALLEST_WINDOW)
    monkeypatch.setattr(conversation_lengths, "_CHUNK_TOKENS", 1 << 14)
    monkeypatch.setattr("nld_train.data.token_index._CHUNK", 1 << 12)
    tracemalloc.start()
    try:
        facts = make_packing(f"{tmp_path}/set", ConversationPacking(64, 64, 2), 1, f"{tmp_path}/packing", 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert facts.samples == -(-count // 16)
    assert peak < 10 * count, f"{peak / count:.1f} bytes per conversation"


def test_bad_sets_are_refused_in_one_line(tmp_path: Path) -> None:
    conversations = [[Turn("user", [4] * 9), Turn("assistant", [5, 6, 2], 2)]] * 3
    prefix, folder = write_chat_set(tmp_path / "set", conversations, turns=False), f"{tmp_path}/packing"
    fits, short = ConversationPacking(20, 20, 4), ConversationPacking(11, 20, 4)
    for make in (lambda each: make_packing(prefix, each, 1, folder), lambda each: estimate_facts(prefix, each)):
        with pytest.raises(
            UserError, match=r"^batch\.sequence_length=11: must be at least 12, the length of the short"
        ):
            make(short)
        with pytest.raises(UserError, match=r"^data\.long_conversations=shorten: .*set\.turns\.bin, which"):
            make(ConversationPacking(11, 20, 4, long="shorten"))
    empty = write_chat_set(tmp_path / "empty", [[Turn("user", [4] * 9)]] * 2)
    with pytest.raises(UserError, match="none of 2 conversations has an answer"):
        make_packing(empty, fits, 1, folder)
    with pytest.raises(UserError, match="none of 2 conversations has an answer"):
        mean_noisy_ratio(empty, 4, "answer", True)
    bits = Path(f"{prefix}.answers.bin")
    for raw, message in (
        (
            bits.read_bytes()[:-1],
            r"set\.answers\.bin is damaged: it has 4 bytes, and .*set\.bin with 36 tokens requires 5",
        ),
        (bits.read_bytes() + b"\0", r"set\.answers\.bin is damaged: it has 6 bytes"),
        (None, r"set\.answers\.bin cannot be read \(No such file or directory\): prepare the set again"),
    ):
        bits.unlink() if raw is None else bits.write_bytes(raw)
        with pytest.raises(UserError, match=message) as caught:
            make_packing(prefix, fits, 1, folder)
        assert "\n" not in str(caught.value)
    assert not [*tmp_path.glob("packing/*"), *tmp_path.glob("packing/.*")], "nothing half-written is left"


def test_a_plan_says_what_becomes_of_the_conversations(tmp_path: Path) -> None:
    conversations = random_conversations(8, 60, longest=20)
    prefix = write_chat_set(tmp_path / "chat", conversations)
    settings = ["stages=sft", "run.stages=[sft]", f"stages.sft.train=[{{prefix: {prefix}, weight: 1}}]"]
    settings += ["data.documents=isolate", "batch.sequence_length=100", "stages.sft.noisy_length=128"]
    missing = dict(data_facts(composed(*settings)))
    assert missing == {"chat in stage sft": f"not counted: {prefix}.manifest.json does not exist"}
    write_chat_manifest(prefix, conversations)
    (text,) = dict(data_facts(composed(*settings))).values()
    facts = estimate_facts(prefix, ConversationPacking(100, 128, composed(*settings).diffusion.block_size))
    assert text == facts.described()
    assert f"left out: {sum(len(tokens_of(each)) > 100 for each in conversations)} longer than 100 tokens" in text
    short = dict(data_facts(composed(*settings, "batch.sequence_length=4")))
    assert "not counted: batch.sequence_length=4: must be at least" in short["chat in stage sft"]
