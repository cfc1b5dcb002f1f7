"""Losses and gradients of packed conversations: those of each one alone, and of plain loops over whole logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from chat_sets import END, Conversation, Turn, answers_of, random_conversations, tokens_of, write_chat_set
from oracle import masked_logits, pair, tiny_config
from test_joint_loss import ALPHA, AVERAGINGS, CPU, MASK, Samples, compare, through_the_schedule
from torch import Tensor

from nld_train.config.schema import Config, SourceConfig
from nld_train.data.collate import StreamCollator, select_rows
from nld_train.data.conversation_lengths import ConversationPacking
from nld_train.data.conversations import PackedConversations
from nld_train.data.order import make_order
from nld_train.data.packing import make_packing
from nld_train.data.samples import SampleSettings, TrainingSamples
from nld_train.losses.objective import TermWeights, denominators
from nld_train.masking.layout import StreamLayout
from nld_train.masking.schedule import noise_schedule
from nld_train.model import streams
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.loop.forward_backward import global_counts, global_terms, run_schedule
from nld_train.training.loop.micro_batch import Placement

pytestmark = pytest.mark.usefixtures("groups")
LENGTH = 40


@pytest.fixture(autouse=True)
def forget_contexts() -> Iterator[None]:
    yield
    streams.clear()


def conversations_of(seed: int) -> list[Conversation]:
    """Random ones, and: an answer alone, one of one token, an empty one, and none after the last turn of the user."""
    user, answer = Turn("user", [7, 8]), Turn("assistant", [5, 40, 41, END], 3)
    edges: list[Conversation] = [
        [Turn("assistant", [50, 51, END], 3)],
        [user, Turn("assistant", [5, END], 1)],
        [user, Turn("assistant", [5]), user, answer],
        [user, answer, user],
    ]
    return edges + random_conversations(seed, 6, 4, MASK - 1)


@dataclass(frozen=True)
class Alone:
    """One conversation of a packed sample: what a reader of the specification makes of it, and its part of the sample.

    Attributes:
        tokens: of the conversation.
        answers: which of them belong to answers.
        noisy: its noisy tokens, see `naive.answer_tokens`.
        first_noisy: index of its first noisy token in the sample.
        sample: the packed sample.
    """

    tokens: list[int]
    answers: list[bool]
    noisy: list[tuple[int | None, int, int, bool]]
    first_noisy: int
    sample: dict[str, Any]

    def part(self, name: str) -> Tensor:
        """Its part of what the sample has for each noisy token."""
        part: Tensor = self.sample[name][self.first_noisy : self.first_noisy + len(self.noisy)]
        return part

    @property
    def hidden(self) -> list[int]:
        return [END if index is None else self.tokens[index] for index, *_ in self.noisy]

    @property
    def blocks(self) -> list[int]:
        names = [(start, begin) for _, start, begin, _ in self.noisy]
        order = list(dict.fromkeys(names))
        return [order.index(name) for name in names]

    @property
    def begins(self) -> list[int]:
        return [begin for _, _, begin, _ in self.noisy]

    @property
    def supervised(self) -> list[bool]:
        return [*self.answers[1:], False]

    def logits(self, oracle: Any, with_noise: bool) -> Tensor:
        """Log probabilities of all its tokens, the noisy ones first, from nothing but the conversation."""
        documents, count = [0] * len(self.tokens), len(self.noisy) if with_noise else 0
        blocks, begins = self.blocks[:count], self.begins[:count]
        masked = self.part("masked").tolist() if with_noise else []
        noisy = [MASK if hit else token for hit, token in zip(masked, self.hidden[:count], strict=True)]
        positions = [naive.noisy_position(documents, blocks, begins, index) for index in range(count)]
        mask = naive.visibility_of_streams(documents, blocks, begins)
        positions += list(range(len(self.tokens)))
        found = masked_logits(oracle, torch.tensor([noisy + self.tokens]), [mask], [positions])
        return found[0].double().log_softmax(-1)


@dataclass(frozen=True)
class Batch:
    """A global batch of packed samples, and its conversations one by one."""

    samples: Samples
    alone: list[list[Alone]]


def batch_of(tmp_path: Path, config: Config, seed: int, noisy_length: int) -> Batch:
    """Samples as training reads them, and the conversations that their tokens are."""
    conversations = conversations_of(seed)
    prefix = write_chat_set(tmp_path / "chat", conversations)
    diffusion = config.diffusion
    packing = ConversationPacking(LENGTH, noisy_length, diffusion.block_size, diffusion.blocks, diffusion.fill)
    make_packing(prefix, packing, seed, tmp_path)
    packed = PackedConversations(prefix, packing, seed, tmp_path)
    order = make_order(seed, [SourceConfig(prefix, 1.0)], {prefix: packed})
    settings = SampleSettings(
        stage="sft",
        seed=seed,
        noisy_length=noisy_length,
        documents="isolate",
        diffusion=diffusion,
        global_size=len(packed),
        vocab_size=config.model.vocab_size,
        mask_token_id=MASK,
        eos_token_id=END,
    )
    samples = [TrainingSamples(order, settings)[index] for index in range(len(packed))]
    by_tokens = {tuple(tokens_of(each)): each for each in conversations}
    collated: Samples = torch.utils.data.default_collate(samples)
    return Batch(collated, [taken_apart(sample, by_tokens, config) for sample in samples])


def taken_apart(sample: dict[str, Any], by_tokens: dict[tuple[int, ...], Conversation], config: Config) -> list[Alone]:
    """The conversations of a sample, found by their tokens among all that there are."""
    documents, found, first_noisy = sample["documents"].tolist(), [], 0
    for ordinal in range(documents[-1]):
        tokens = [token for token, own in zip(sample["tokens"].tolist(), documents, strict=True) if own == ordinal]
        answers = answers_of(by_tokens[tuple(tokens)])
        noisy = naive.answer_tokens(
            [0] * len(tokens),
            answers,
            config.diffusion.block_size,
            config.diffusion.blocks == "answer",
            config.diffusion.fill,
        )
        found.append(Alone(tokens, answers, noisy, first_noisy, sample))
        first_noisy += len(noisy)
    if "maskable" in sample:
        maskable = [on for each in found for *_, on in each.noisy]
        assert sample["maskable"].tolist() == maskable + [False] * (len(sample["maskable"]) - first_noisy)
        assert not (sample["masked"] & ~sample["maskable"]).any()
        assert first_noisy <= len(sample["maskable"]), "all blocks fit"
    return found


def naive_terms(oracle: Any, batch: Batch, averaging: str, joint: bool) -> tuple[Any, Any]:
    """Both terms from the whole logits of each conversation alone."""
    ar, diffusion = [], []
    for sample in batch.alone:
        scored = [(each, each.logits(oracle, joint)) for each in sample]
        ar.append(
            [
                (supervised, -logits[(len(each.noisy) if joint else 0) + index, target])
                for each, logits in scored
                for index, (supervised, target) in enumerate(zip(each.supervised[:-1], each.tokens[1:], strict=True))
            ]
        )
        diffusion.append(
            [
                (maskable, hit, probability, -logits[index, target])
                for each, logits in scored
                for index, (maskable, hit, probability, target) in enumerate(
                    zip(
                        [maskable for *_, maskable in each.noisy],
                        each.part("masked").tolist(),
                        each.part("probability").tolist(),
                        each.hidden,
                        strict=True,
                    )
                )
            ]
            if joint
            else []
        )
    return naive.terms(
        averaging,
        [[row[0] for row in rows] for rows in ar],
        [[row[0] for row in rows] for rows in diffusion],
        [[row[1] for row in rows] for rows in diffusion],
        [[row[2] for row in rows] for rows in diffusion],
        ar_nll=lambda n, i: ar[n][i][1],
        diffusion_nll=lambda n, i: diffusion[n][i][3],
    )


def config_of(block_size: int, blocks: str, fill: bool) -> Config:
    return tiny_config(
        diffusion__block_size=block_size,
        diffusion__blocks=blocks,
        diffusion__fill=str(fill).lower(),
        model__num_hidden_layers=1,
        execution__head_chunk_rows=7,
    )


CASES = [
    pytest.param(seed, averaging, size, blocks, fill, marks=[pytest.mark.long] * (seed > 5))
    for seed, averaging, size, blocks, fill in (
        (1, "global", 4, "answer", True),
        (2, "contributing", 7, "answer", False),
        (3, "masked", 4, "document", True),
        (4, "sequence", 3, "document", False),
        (5, "global", 1, "answer", True),
        (6, "sequence", 32, "answer", True),
        (7, "global", 16, "document", True),
        (8, "global", 5, "document", False),
    )
]


@pytest.mark.parametrize(("seed", "averaging", "size", "blocks", "fill"), CASES)
def test_losses_and_gradients_are_the_naive_ones_of_each_conversation_alone(
    tmp_path: Path, seed: int, averaging: Any, size: int, blocks: str, fill: bool
) -> None:
    config = config_of(size, blocks, fill)
    ours, theirs = pair(config)
    batch = batch_of(tmp_path, config, seed, 20 * size if size > 5 else 64)
    assert max(map(len, batch.alone)) > 2, "samples of several conversations"
    found = through_the_schedule(config, ours, batch.samples, averaging, ALPHA, micro_size=1)
    compare(config, ours, theirs, batch.samples, found, naive_terms(theirs, batch, averaging, True), ALPHA)


@pytest.mark.parametrize("averaging", AVERAGINGS)
def test_without_alpha_the_ar_loss_of_the_answers_is_left(tmp_path: Path, averaging: Any) -> None:
    config = config_of(4, "answer", True)
    ours, theirs = pair(config)
    batch = batch_of(tmp_path, config, 9, noisy_length=0)
    assert "noisy_tokens" not in batch.samples
    samples = batch.samples | {"masked": torch.zeros(len(batch.alone), 0)}
    found = through_the_schedule(config, ours, samples, averaging, 0.0, micro_size=1)
    compare(config, ours, theirs, samples, found, naive_terms(theirs, batch, averaging, False), 0.0)


def unpacked(batch: Batch) -> list[Samples]:
    """Each conversation as a sample of its own, without padding and inert tokens, under the same noise."""
    found = []
    for each in (each for sample in batch.alone for each in sample):
        arrays: dict[str, Any] = {
            "tokens": [*each.tokens, 0],
            "documents": [0] * len(each.tokens) + [1],
            "supervised": each.supervised,
            "noisy_tokens": each.hidden,
            "blocks": each.blocks,
            "begins": each.begins,
            "maskable": [maskable for *_, maskable in each.noisy],
        }
        own = {name: torch.tensor(values)[None] for name, values in arrays.items()}
        found.append(own | {name: each.part(name)[None] for name in ("masked", "probability")})
    return found


@pytest.mark.parametrize("averaging", AVERAGINGS[:3])
@pytest.mark.parametrize(("blocks", "fill"), [("answer", True), ("document", False)])
def test_packed_conversations_have_the_losses_and_gradients_of_unpacked_ones(
    tmp_path: Path, blocks: str, fill: bool, averaging: Any
) -> None:
    config = config_of(4, blocks, fill)
    ours, _ = pair(config)
    batch = batch_of(tmp_path, config, 10, 64)
    collator = StreamCollator(True, MASK, averaging, noise_schedule(config.diffusion), sequences=1)
    placement = Placement(RotaryEmbedding(config.model, CPU), torch.float32, CPU)
    found = []
    for batches in ([batch.samples], unpacked(batch)):
        for weight in ours.parameters():
            weight.grad = None
        collated = [collator.of(each) for each in batches]
        counts = global_counts(collated)
        results = run_schedule([ours], collated, denominators(averaging, counts), TermWeights(1.0, ALPHA), placement)
        terms = global_terms(results, CPU).tolist()
        gradients = {name: weight.grad.clone() for name, weight in ours.named_parameters() if weight.grad is not None}
        found.append((counts, terms, gradients))
    (counts, terms, gradients), (own_counts, own_terms, own_gradients) = found
    assert replace(counts, sequences=0) == replace(own_counts, sequences=0)
    assert terms == pytest.approx(own_terms, rel=1e-6)
    assert gradients.keys() == own_gradients.keys()
    for name, gradient in gradients.items():
        assert (gradient - own_gradients[name]).norm() <= 1e-6 * own_gradients[name].norm(), name


def test_no_token_of_a_prompt_is_a_target(tmp_path: Path) -> None:
    """Prompts and answers have no id in common, so that targets show where they come from."""
    for seed, blocks in ((11, "answer"), (12, "document")):
        config = config_of(4, blocks, True)
        batch = batch_of(tmp_path, config, seed, 64)
        conversations = [each for sample in batch.alone for each in sample]
        answers = {t for each in conversations for t, on in zip(each.tokens, each.answers, strict=True) if on}
        prompts = {t for each in conversations for t, on in zip(each.tokens, each.answers, strict=True) if not on}
        assert prompts
        assert not prompts & answers
        rows = select_rows(batch.samples, True)
        assert set(rows.targets.tolist()) <= answers
        assert rows.ar_count == sum(sum(each.answers[1:]) for each in conversations)
        noisy = [on for each in conversations for *_, on in each.noisy]
        assert int(batch.samples["maskable"].sum()) == sum(noisy)
        assert all(noisy) == (blocks == "answer")


@pytest.mark.parametrize("attention", ["dense", "chunked", "decomposed", "split"])
@torch.no_grad()
def test_no_logit_of_a_conversation_depends_on_another(tmp_path: Path, attention: str) -> None:
    """Every token of a conversation is another one, in both streams: the logits of all others keep every bit."""
    config = tiny_config(diffusion__block_size=4, execution__attention=attention)
    model, _ = pair(config)
    batch = batch_of(tmp_path, config, 13, 64)
    for number, conversations in enumerate(batch.alone):
        sample = {name: tensor[number : number + 1] for name, tensor in batch.samples.items()}
        documents = sample["documents"][:, :-1]
        layout = StreamLayout.of_clean(documents).with_noisy(sample["blocks"], sample["begins"])
        tokens = torch.cat([sample["noisy_tokens"], sample["tokens"][:, :-1]], dim=1)
        owners = torch.full((layout.noisy_length,), int(documents.max()))
        for ordinal, each in enumerate(conversations):
            owners[each.first_noisy : each.first_noisy + len(each.noisy)] = ordinal
        owners = torch.cat([owners, documents[0]])
        before = logits_of(config, model, layout, tokens)
        for ordinal in range(len(conversations)):
            changed = torch.where(owners == ordinal, (tokens + 29) % 66, tokens)
            difference = (logits_of(config, model, layout, changed) - before).abs().amax(dim=1)
            assert not difference[owners != ordinal].any()
            assert (difference[owners == ordinal] > 1e-6).all()


def logits_of(config: Config, model: Any, layout: StreamLayout, tokens: Tensor) -> Tensor:
    """Of one row, `[S, vocab]`."""
    context = streams.StreamContext.of(layout, RotaryEmbedding(config.model, CPU), torch.float32)
    found: Tensor = model(tokens, streams.register(context)).view(tokens.shape[1], -1)
    return found
