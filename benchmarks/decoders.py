"""The engines and modes that `benchmarks.decode` compares on the same prompts with the same weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from checkpoint_convert.exporting import export_checkpoint
from nld_train.decoding import DecodeOptions, DecodeResult, Engine, Mode, Threshold
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.load import find_source

STOCK, IN_TREE, EXPORT = "transformers", "in tree", "export"


@dataclass(frozen=True)
class Workload:
    """The task of every engine and mode: greedy decoding without an end-of-sequence token.

    Attributes:
        prompts: ids, all of one length, enough for the largest batch.
        per_slot: prompts per slot of a batch; they wait until a slot is freed.
        new_tokens: new tokens per prompt.
        block_length: of all modes but AR.
        threshold: commit policy of diffusion.
    """

    prompts: list[list[int]]
    per_slot: int
    new_tokens: int
    block_length: int
    threshold: float

    def for_batch(self, size: int) -> list[list[int]]:
        """The prompts of a batch of `size` slots."""
        return self.prompts[: size * self.per_slot]


@dataclass(frozen=True)
class EngineMode:
    """One decode mode of one engine.

    Attributes:
        engine: `transformers`, `in tree` or `export`.
        mode: of decoding.
        run: from a batch size to the new ids of all its prompts, and the decoder's result (None for `transformers`).
    """

    engine: str
    mode: Mode
    run: Callable[[int], tuple[list[list[int]], DecodeResult | None]]


def stdlib_prompts(tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """Pieces of the running interpreter's standard library, which is also the quickstart's corpus."""
    files = sorted(path for path in Path(os.__file__).parent.glob("*.py") if path.stat().st_size > 40 * length)
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
    # From the middle of each file; for more prompts than files, from several offsets in each.
    rounds = -(-count // len(texts))
    offsets = [(text, len(text) * (each + 1) // (rounds + 1)) for each in range(rounds) for text in texts][:count]
    prompts = [tokenizer.encode(text[offset:][: 8 * length])[:length] for text, offset in offsets]
    assert [len(prompt) for prompt in prompts] == [length] * count
    return prompts


@contextmanager
def engine_modes(
    checkpoint: Path, tokenizer: str | None, modes: Sequence[Mode], work: Workload
) -> Iterator[list[EngineMode]]:
    """All engines and modes over one set of weights: Megatron's model, the export, and the stock model's `generate`."""
    source = find_source(checkpoint, tokenizer)
    with TemporaryDirectory() as folder, ExitStack() as open_engines:
        for name in ("nld", "ministral3"):
            export_checkpoint(checkpoint, Path(folder) / name, name)
        engines = {IN_TREE: source, EXPORT: find_source(Path(folder) / "nld", tokenizer)}
        found = [EngineMode(STOCK, "ar", _stock(Path(folder) / "ministral3", work))]
        for name, opened in engines.items():
            engine = open_engines.enter_context(opened.open())
            found += [EngineMode(name, mode, _decoder(engine, mode, work)) for mode in modes]
        yield found


def _decoder(engine: Engine, mode: Mode, work: Workload) -> Callable[[int], tuple[list[list[int]], DecodeResult]]:
    options = DecodeOptions(max_new_tokens=work.new_tokens, block_length=work.block_length)
    policy = Threshold(work.threshold) if mode == "diffusion" else None

    def run(size: int) -> tuple[list[list[int]], DecodeResult]:
        result = decode(engine, work.for_batch(size), mode, options, policy, batch_size=size)
        return result.token_ids, result

    return run


def _stock(directory: Path, work: Workload) -> Callable[[int], tuple[list[list[int]], None]]:
    """`generate` of `transformers` on its Ministral3, with its static cache, batch after batch."""
    from transformers import AutoModelForCausalLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).to(device).eval()
    length = len(work.prompts[0])

    @torch.no_grad()
    def generate(prompts: list[list[int]]) -> list[list[int]]:
        ids = torch.tensor(prompts, device=device)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=work.new_tokens,
            min_new_tokens=work.new_tokens,
            do_sample=False,
            cache_implementation="static",
        )
        new: list[list[int]] = output[:, length:].tolist()
        return new

    def run(size: int) -> tuple[list[list[int]], None]:
        prompts = work.for_batch(size)
        return [new for i in range(0, len(prompts), size) for new in generate(prompts[i : i + size])], None

    return run
