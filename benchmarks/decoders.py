"""The ways to continue the same prompts with the same weights that `benchmarks.decode` times against each other."""

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
    """What every contestant is asked for: greedy, and no text ends early.

    Attributes:
        prompts: ids, all of one length, enough for the largest batch.
        per_row: prompts for each row of a batch; they wait until a row has finished.
        new_tokens: of each prompt.
        block_length: of the block modes.
        threshold: of diffusion.
    """

    prompts: list[list[int]]
    per_row: int
    new_tokens: int
    block_length: int
    threshold: float

    def for_rows(self, rows: int) -> list[list[int]]:
        """The prompts of a batch of so many rows."""
        return self.prompts[: rows * self.per_row]


@dataclass(frozen=True)
class Contestant:
    """One way: who runs it, in which mode, and what does it for so many rows.

    Attributes:
        engine: `transformers`, `in tree` or `export`.
        mode: how it decodes.
        run: from a number of rows at work at once to the new ids of all their prompts, and the decoder's account of it
            where there is one.
    """

    engine: str
    mode: Mode
    run: Callable[[int], tuple[list[list[int]], DecodeResult | None]]


def stdlib_prompts(tokenizer: Any, rows: int, length: int) -> list[list[int]]:
    """Pieces of the running interpreter's standard library, which a quickstart model has read in another cut."""
    files = sorted(path for path in Path(os.__file__).parent.glob("*.py") if path.stat().st_size > 40 * length)
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
    # From the middle of each file; of more prompts than files, from several places in each.
    turns = -(-rows // len(texts))
    places = [(text, len(text) * (turn + 1) // (turns + 1)) for turn in range(turns) for text in texts][:rows]
    prompts = [tokenizer.encode(text[place:][: 8 * length])[:length] for text, place in places]
    assert [len(prompt) for prompt in prompts] == [length] * rows
    return prompts


@contextmanager
def contestants(
    checkpoint: Path, tokenizer: str | None, modes: Sequence[Mode], work: Workload
) -> Iterator[list[Contestant]]:
    """All ways over one set of weights: Megatron's model, the exported package, and the stock model's `generate`."""
    source = find_source(checkpoint, tokenizer)
    with TemporaryDirectory() as folder, ExitStack() as open_engines:
        for name in ("nld", "ministral3"):
            export_checkpoint(checkpoint, Path(folder) / name, name)
        engines = {IN_TREE: source, EXPORT: find_source(Path(folder) / "nld", tokenizer)}
        found = [Contestant(STOCK, "ar", _stock(Path(folder) / "ministral3", work))]
        for name, opened in engines.items():
            engine = open_engines.enter_context(opened.open())
            found += [Contestant(name, mode, _decoder(engine, mode, work)) for mode in modes]
        yield found


def _decoder(engine: Engine, mode: Mode, work: Workload) -> Callable[[int], tuple[list[list[int]], DecodeResult]]:
    options = DecodeOptions(max_new_tokens=work.new_tokens, block_length=work.block_length)
    policy = Threshold(work.threshold) if mode == "diffusion" else None

    def run(rows: int) -> tuple[list[list[int]], DecodeResult]:
        result = decode(engine, work.for_rows(rows), mode, options, policy, batch_size=rows)
        return result.token_ids, result

    return run


def _stock(directory: Path, work: Workload) -> Callable[[int], tuple[list[list[int]], None]]:
    """`generate` of `transformers` on its own Ministral3, with its static cache, batch after batch."""
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

    def run(rows: int) -> tuple[list[list[int]], None]:
        prompts = work.for_rows(rows)
        return [new for i in range(0, len(prompts), rows) for new in generate(prompts[i : i + rows])], None

    return run
