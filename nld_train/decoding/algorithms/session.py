"""The KV cache of one batch as decode algorithms use it, and the count of every forward.

A slot of the cache serves one sequence after another: when a sequence has finished, the next prompt is admitted to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nld_train.decoding.algorithms.forwards import Body, Forwards
from nld_train.decoding.algorithms.kept_text import KeptText
from nld_train.decoding.algorithms.options import Graphs
from nld_train.decoding.engines.cycles import check_graphs, rounded_entries, rounded_rows
from nld_train.decoding.engines.engine import Engine
from nld_train.model.vision.picture_prompt import pictures_of
from nld_train.model.vision.pictures import Pictures


class Session:
    """Sequences of unequal length on one engine. The KV cache holds keys and values of committed tokens only.

    They are causal, or those of whole blocks where tokens saw these in training (`CleanStream.block`).

    Args:
        engine: the model.
        prompts: ids of each sequence, with its pictures where it has some.
        slots: maximum number of active sequences; the first prompts are admitted to them.
        capacity: entries per slot: the longest text of a sequence plus the entries that a step needs beyond it.
        kept: what the cache holds already, of the text of a single sequence, and goes on to hold afterwards; None to
            begin with an empty cache.
        graphs: whether cycles run as CUDA graphs, see `DecodeOptions`.

    Raises:
        ValueError: they must and cannot; also while decoding, if a cycle could not be captured.

    Attributes:
        active: numbers of the active sequences by slot, in the order of every tensor here.
        lengths: int64 `[a]`, committed tokens of each active sequence that are in the cache.
        forwards: decode forwards of the batch.
        graph_forwards: those of them that ran as part of a CUDA graph.
        prefills: prefill forwards of the batch.
        sequence_forwards: decode forwards of each sequence of the whole batch.
        prefill_tokens: tokens of the prompt of each sequence that had to be computed.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        slots: int,
        capacity: int,
        kept: KeptText | None = None,
        graphs: Graphs = "auto",
    ) -> None:
        self.engine = engine
        self.active = list(range(slots))
        self.lengths = torch.zeros(slots, dtype=torch.int64)
        self.forwards = 0
        self.graph_forwards = 0
        self.prefills = 0
        self.sequence_forwards = [0] * len(prompts)
        self.prefill_tokens = [0] * len(prompts)
        self._prompts, self._kept = prompts, kept
        self._slots, self._capacity, self._graphs = slots, capacity, graphs
        check_graphs(engine.cycles, graphs)
        if kept is None:
            engine.allocate(slots, capacity)
        else:
            self.lengths[0] = kept.begin(engine, prompts[0], capacity)

    @property
    def fixed(self) -> bool:
        """Whether steps are fixed ones, whose shapes do not depend on values."""
        return self.engine.cycles.fixed

    def admit(self, slot: int, sequence: int) -> None:
        """Assigns a slot to another sequence, whose prompt must then be prefilled."""
        self.active[slot] = sequence
        self.lengths = self.lengths.clone()
        self.lengths[slot] = 0

    def prefill(self, slots: Sequence[int], masks: int = 0) -> Tensor:
        """Runs prompts, what the cache does not hold of them, and keeps their keys and values.

        Their tokens see each other as clean ones in training: causally, or up to the end of their block, where blocks
        are counted from the start of the text.

        Args:
            slots: slots to prefill, ascending.
            masks: number of mask tokens after each prompt; they see the prompt and each other and are not committed.

        Returns:
            float32 `[n, 1 + masks, V]`, one for each slot: after the prompt's last token, then at each mask.
        """
        index = torch.tensor(slots)
        cached = self.lengths[index]
        prompts = [self._prompts[self.active[slot]][size:] for slot, size in zip(slots, cached.tolist(), strict=True)]
        sizes = torch.tensor([len(prompt) for prompt in prompts])
        width = int(sizes.max()) + masks
        tokens = torch.full((len(sizes), width), self.engine.mask_token_id)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = torch.as_tensor(prompt)
        logits = Forwards(self.engine, cached).run(
            tokens,
            sizes + masks,
            pattern=self._prompt_pattern(sizes, width, masks),
            outputs=(sizes - 1)[:, None] + torch.arange(1 + masks),
            slots=None if len(slots) == len(self.active) else index,
            pictures=self._pictures(slots, cached.tolist()),
        )
        self.prefills += 1
        for slot, prompt in zip(slots, prompts, strict=True):
            self.prefill_tokens[self.active[slot]] = len(prompt)
        self.lengths = self.lengths.index_copy(0, index, cached + sizes)
        return logits

    def _pictures(self, slots: Sequence[int], cached: Sequence[int]) -> Pictures | None:
        """The pictures of the prompts in these slots that the cache does not hold, in their order."""
        if (image_tokens := self.engine.image_tokens) is None:
            return None
        prompts = [self._prompts[self.active[slot]] for slot in slots]
        pairs = zip(prompts, cached, strict=True)
        pictures = [picture for prompt, size in pairs for picture in image_tokens.pictures_from(prompt, size)]
        return Pictures.of(pictures) if pictures else None

    def _prompt_pattern(self, sizes: Tensor, width: int, masks: int) -> Tensor | None:
        if masks:
            assert self.engine.clean_stream.block is None, "only diffusion decodes such a model"
            return _prompt_then_masks(sizes, width, masks)
        return self.engine.clean_stream.prompt_pattern(width)

    def cycle(
        self, body: Body, length: int, inputs: dict[str, Tensor], counted: Sequence[Tensor | None] = (None,)
    ) -> tuple[Tensor, ...]:
        """Runs a cycle and counts its forwards.

        Args:
            body: what is computed.
            length: tokens of its longest step.
            inputs: its inputs beside the lengths, `[a, ...]` each.
            counted: for each forward bool `[a]`, the sequences for which it is counted; None for all.

        Returns:
            The first result of the body on the CPU, the others where they are; all `[a, ...]`.
        """
        cycles, active = self.engine.cycles, len(self.active)
        entries, rows = None, active
        if cycles.fixed:
            entries = min(rounded_entries(int(self.lengths.max()) + length), rounded_entries(self._capacity))
            rows = rounded_rows(active, self._slots)
        engine = self.engine

        def run(given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            given = dict(given)
            return body(Forwards(engine, given.pop("lengths"), entries), **given)

        key = None if self._graphs == "off" else (body, entries)
        ran = cycles.run(key, run, {"lengths": self.lengths, **inputs}, rows)
        check_graphs(cycles, self._graphs)
        self._count(counted, ran.as_graph)
        read, *others = (tensor if rows == active else tensor[:active] for tensor in ran.outputs)
        return read.cpu(), *others

    def commit(self, counts: Tensor) -> None:
        """The next int64 `[a]` tokens of each sequence, which a forward has written to the cache, become its text."""
        self.lengths = self.lengths + counts

    def forward_uncounted(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """`Forwards.read_only` for the oracle bound: not counted. int64 `[a, T]` and `[a]` to float32 `[a, T, V]`."""
        return Forwards(self.engine, self.lengths).read_only(tokens, counts)

    def end(self, slot: int, new_tokens: Sequence[int]) -> None:
        """The sequence in a slot has ended with these tokens; those that the cache holds may be kept for another call.

        The cache need not hold the last ones, and may hold some that were drafted after the end.
        """
        if self._kept is not None:
            prompt = self._prompts[self.active[slot]]
            self._kept.end([*prompt, *new_tokens][: int(self.lengths[slot])], pictures_of(prompt))

    def keep_slots(self, slots: list[int]) -> None:
        """Keeps only these slots; the others are freed, unless their text is kept for another call."""
        if self._kept is None:
            self.engine.keep_slots(torch.tensor(slots, dtype=torch.int64))
        self.active = [self.active[slot] for slot in slots]
        self.lengths = self.lengths[slots]

    def _count(self, counted: Sequence[Tensor | None], as_graph: bool) -> None:
        self.forwards += len(counted)
        self.graph_forwards += len(counted) if as_graph else 0
        for which in counted:
            for slot, sequence in enumerate(self.active):
                self.sequence_forwards[sequence] += 1 if which is None else int(which[slot])


def _prompt_then_masks(sizes: Tensor, width: int, masks: int) -> Tensor:
    """Prompt tokens are causal; the masks after them see the prompt and all masks: bool `[b, width, width]`."""
    index = torch.arange(width)
    furthest = torch.where(index < sizes[:, None], index, (sizes + masks - 1)[:, None])
    return index <= furthest[:, :, None]
