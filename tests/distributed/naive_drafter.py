"""A drafter step written out by hand: one block after another, whole logits, Python loops, dense masks.

Nothing here comes from `nld_train.losses`, `nld_train.masking.visibility` or
`nld_train.data.draft_batch`. Every block is a forward pass of its own over
`[text before it | block]`, whose mask is written down here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from naive import answer_tokens, noisy_tokens, position_in_document
from torch import Tensor

from nld_train.config.schema import Config
from nld_train.data.order import stage_orders
from nld_train.data.samples import training_samples
from nld_train.masking.drafting import DraftDraws, draw_drafts
from nld_train.model import streams
from nld_train.model.rotary import RotaryEmbedding


@dataclass(frozen=True)
class _View:
    """A `LayerContext` with a mask of its own: one row of T tokens."""

    cosine: Tensor
    sine: Tensor
    query_scale: Tensor | None
    adapted: Tensor | None
    mask: Tensor

    def attend(self, attend: Any, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        del attend, layer
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask, enable_gqa=True)


class NaiveDrafter:
    """The first step of the only stage of a run, on a model with an adapter.

    Args:
        config: the run.
        model: without wrappers.
    """

    def __init__(self, config: Config, model: Any) -> None:
        (self.name,) = config.run.stages
        adapter = config.stages[self.name].adapter
        assert adapter is not None
        self.config, self.model, self.adapter = config, model, adapter
        self.rotary = RotaryEmbedding(config.model, torch.device("cpu"))

    def step(self) -> dict[str, float]:
        """The measures of the step; gradients of the loss are added to the model's parameters."""
        samples = training_samples(self.config, self.name, stage_orders(self.config, [_Plan(self.name)])[self.name])
        blocks = []
        for sample_index in range(self.config.batch.global_size):
            sample = samples[sample_index]
            documents, clean = sample["documents"].tolist(), sample["tokens"].tolist()[:-1]
            length = self.config.stages[self.name].noisy_length
            capacity = len(clean) if length == "auto" else length
            draws = draw_drafts(
                self.config.run.seed, self.name, sample_index, max(capacity, len(clean)), self.adapter.greedy_share
            )
            tokens = (
                _tokens_of_answers(documents, sample["answers"].tolist(), draws, self.adapter.block_size)
                if "answers" in sample
                else _tokens_of_text(documents, draws, self.adapter.block_size)
            )
            blocks += [self._block(clean, draws, block) for block in _blocks(tokens, draws, capacity)]
        parts = torch.stack([terms for terms, _, _ in blocks]).mean(0)
        parts[0].backward()
        greedy = [1 + accepted for _, accepted, was_greedy in blocks if was_greedy]
        return {
            "loss": float(parts[0]),
            "kl": float(parts[1]),
            "tv": float(parts[2]),
            "cross_entropy": float(parts[3]),
            "accepted_length": sum(1 + accepted for _, accepted, _ in blocks) / len(blocks),
            "greedy_accepted_length": sum(greedy) / len(greedy) if greedy else math.nan,
            "blocks": float(len(blocks)),
        }

    def _block(self, clean: list[int], draws: DraftDraws, block: _Block) -> tuple[Tensor, int, bool]:
        """Mean of the scored drafts' losses `[4]`, accepted drafts, and whether it was drafted greedily."""
        text, mask = clean[block.document : block.begin], self.config.model.mask_token_id
        with torch.no_grad():
            seed = int(self._logits(text, len(text), causal=True, adapted=False)[-1].argmax())
        drafted = self._logits([*text, seed, *[mask] * (block.size - 1)], len(text), causal=False, adapted=True)
        z_draft = drafted[len(text) + 1 :]
        greedy = bool(draws.greedy[block.number])
        tokens = [
            int(row.argmax()) if greedy else _draw(row, float(draws.uniform[block.start + 1 + step]))
            for step, row in enumerate(z_draft.detach())
        ]
        with torch.no_grad():
            verdicts = self._logits([*text, seed, *tokens], len(text), causal=True, adapted=False)
        z_ar = verdicts[len(text) : -1]
        accepted = 0
        while accepted < len(tokens) and int(z_ar[accepted].argmax()) == tokens[accepted]:
            accepted += 1
        scored = range(min(accepted + 1, len(tokens)))
        return torch.stack([self._row(z_draft[j], z_ar[j]) for j in scored]).mean(0), accepted, greedy

    def _row(self, draft: Tensor, verdict: Tensor) -> Tensor:
        """`[loss, KL, TV, cross-entropy]` of one draft, over its candidate tokens one by one."""
        real = [token for token in range(len(draft)) if token != self.config.model.mask_token_id]
        likeliest = [
            sorted(real, key=lambda token: -float(row[token]))[: self.adapter.top_k]
            for row in (draft.detach(), verdict)
        ]
        chosen = sorted({*likeliest[0], *likeliest[1]})
        temperature = self.adapter.temperature
        q = torch.softmax(draft[chosen] / temperature, 0)
        p = torch.softmax(verdict[chosen] / temperature, 0)
        kl = sum(p[i] * (p[i].log() - q[i].log()) for i in range(len(chosen)))
        tv = sum((p[i] - q[i]).abs() for i in range(len(chosen))) / 2
        lam = math.exp(-0.5 * sum(min(float(p[i]), float(q[i])) for i in range(len(chosen))))
        best = max(chosen, key=lambda token: float(verdict[token]))
        cross_entropy = -torch.log_softmax(draft[chosen], 0)[chosen.index(best)]
        return torch.stack([lam * kl + (1 - lam) * tv + cross_entropy, kl, tv, cross_entropy])

    def _logits(self, tokens: list[int], text: int, causal: bool, adapted: bool) -> Tensor:
        """float64 `[T, V]`: text sees causally, the block behind it the text and itself; the mask id is silenced."""
        total = len(tokens)
        sees = torch.ones(total, total, dtype=torch.bool).tril()
        if not causal:
            sees[text:, text:] = True
        positions = torch.arange(total)[:, None]
        cosine, sine = self.rotary.cosine_and_sine(positions, torch.float32)
        where = (torch.arange(total) >= text).float()[:, None, None] if adapted else None
        handle = streams.register(_View(cosine.unsqueeze(2), sine.unsqueeze(2), None, where, sees))
        logits = self.model(torch.tensor([tokens]), handle).double()
        # By multiplication, so that nothing is infinite where it is not chosen.
        silent = torch.zeros(logits.shape[-1], dtype=torch.float64)
        silent[self.config.model.mask_token_id] = -1e9
        silenced: Tensor = logits + silent
        return silenced


class _Plan:
    def __init__(self, name: str) -> None:
        self.name, self.samples = name, 0


@dataclass(frozen=True)
class _Block:
    """A block with text before it and a draft: its number and first index in the noisy stream, and in the text.

    `document` is where its document starts, `begin` where the block does; it has `size` tokens, the seed included.
    """

    number: int
    start: int
    document: int
    begin: int
    size: int


# The index in the text of a drafted token (None for fill), and of the first tokens of its document and block.
_Token = tuple[int | None, int, int]


def _tokens_of_text(documents: list[int], draws: DraftDraws, block_size: int) -> list[_Token]:
    """All tokens of a text; `documents` are those of its tokens and of the next one."""
    offset = 1 + math.floor(float(draws.prefixes[0]) * block_size)
    return [
        (source, document, document + (0 if block < 0 else offset + block * block_size))
        for source, _, document, block in noisy_tokens(documents, block_size, offset)
    ]


def _tokens_of_answers(documents: list[int], answers: list[bool], draws: DraftDraws, block_size: int) -> list[_Token]:
    """Of each answer the blocks from a random one of its first tokens on; both lists are also of the next token."""
    found: list[_Token] = []
    every = answer_tokens(documents[:-1], answers[:-1], 1, from_answer=True, fill=False)
    for number, start in enumerate(sorted({start for _, start, _, _ in every})):
        own = [source for source, first, _, _ in every if first == start and source is not None]
        document = start - position_in_document(documents, start)
        if start == document:
            del own[0]
        first = math.floor(float(draws.prefixes[number]) * min(block_size, max(len(own) - 1, 0)))
        blocks = [own[begin : begin + block_size] for begin in range(first, len(own), block_size)]
        for block in blocks:
            if block[0] != own[-1]:
                filled = [*block, *[None] * (block_size - len(block))]
                found += [(source, document, block[0]) for source in filled]
    return found


def _blocks(tokens: list[_Token], draws: DraftDraws, capacity: int) -> list[_Block]:
    """The blocks of a sample. Where not all fit, those with the smallest numbers of `left_out` go first."""
    by_begin: dict[tuple[int, int], list[int | None]] = {}
    for source, document, begin in tokens:
        by_begin.setdefault((document, begin), []).append(source)
    kept = dict(enumerate(by_begin.items()))
    while sum(len(sources) for _, sources in kept.values()) > capacity:
        del kept[min(kept, key=lambda number: draws.left_out[number])]
    found, start = [], 0
    for number, ((document, begin), sources) in enumerate(kept.values()):
        assert begin == sources[0]
        if begin > document and len(sources) > 1:
            found.append(_Block(number, start, document, begin, len(sources)))
        start += len(sources)
    return found


def _draw(logits: Tensor, uniform: float) -> int:
    total, wanted = 0.0, uniform
    for token, share in enumerate(torch.softmax(logits, 0).tolist()):
        total += share
        if total > wanted:
            return token
    return len(logits) - 1
