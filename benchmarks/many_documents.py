"""Time and memory of writing and reading the index of a set with many documents.

    python -m benchmarks.many_documents                            2 and 8 million documents
    python -m benchmarks.many_documents --documents 100000

Each action runs in a process of its own, at the given number of documents and at four times as many. What its memory
grows by, divided by the documents that were added, is its memory per document; imports and buffers cancel out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.record import RESULTS, write_result
from nld_train.data.tokenizer import EncoderSpec, bytes_tokenizer, save_tokenizer

_SHARD_DOCUMENTS = 50_000
_LONGEST = 40
_SPEC = EncoderSpec("", 2, (), 260)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2_000_000, help="in the smaller set (default: 2,000,000)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: cores)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    small, large = (measure(number, options.workers) for number in (options.documents, 4 * options.documents))
    rows = {
        name: {
            "seconds": large[name]["seconds"],
            "cores": large[name]["processor_seconds"] / large[name]["seconds"],
            "bytes_per_document": (large[name]["peak"] - small[name]["peak"]) / (3 * options.documents),
        }
        for name in ACTIONS
    }
    show(rows, 4 * options.documents)
    print(write_result("many_documents", {"documents": 4 * options.documents, "rows": rows}, options.results))


def measure(documents: int, workers: int) -> dict[str, dict[str, float]]:
    """Seconds, processor time and peak memory of each action on a set of documents of up to 40 tokens."""
    context = multiprocessing.get_context("spawn")
    found = {}
    with tempfile.TemporaryDirectory(prefix="nld-documents-") as scratch:
        write_shards(Path(scratch), documents)
        save_tokenizer(bytes_tokenizer(), f"{scratch}/tokenizer")
        for name in ACTIONS:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_measured, args=(name, Path(scratch), workers, sender))
            process.start()
            sender.close()
            found[name] = receiver.recv()
            process.join()
    return found


def write_shards(folder: Path, documents: int) -> None:
    """Finished shards as `nld-data prepare` keeps them."""
    for number, begin in enumerate(range(0, documents, _SHARD_DOCUMENTS)):
        generator = np.random.default_rng(number)
        lengths = generator.integers(1, _LONGEST, min(_SHARD_DOCUMENTS, documents - begin))
        tokens = generator.integers(4, 260, int(lengths.sum())).astype(np.uint16)
        np.savez(folder / f"shard-{number:08d}.npz", train_tokens=tokens, train_lengths=lengths)


def _measured(name: str, folder: Path, workers: int, sender: Any) -> None:
    action = ACTIONS[name](folder, workers)
    begin, processor = time.perf_counter(), _processor_seconds()
    action()
    seconds, processor = time.perf_counter() - begin, _processor_seconds() - processor
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    sender.send({"seconds": seconds, "processor_seconds": processor, "peak": 1024 * (own + workers * child)})


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _assemble(folder: Path, workers: int) -> Callable[[], object]:
    from nld_train.data.assemble import assemble, plan_assembly

    shards = sorted(folder.glob("shard-*.npz"))
    return lambda: assemble(plan_assembly(str(folder / "set"), "train", shards, _SPEC), workers, lambda tokens: None)


def _megatron(folder: Path, workers: int) -> Callable[[], object]:
    from nld_train.data.packed import indexed_dataset_module

    indexed = indexed_dataset_module()

    def build() -> None:
        builder = indexed.IndexedDatasetBuilder(f"{folder}/theirs.bin", dtype=np.uint16)
        for shard in sorted(folder.glob("shard-*.npz")):
            with np.load(shard) as arrays:
                tokens, lengths = arrays["train_tokens"], arrays["train_lengths"]
            for document in np.split(tokens, np.cumsum(lengths)[:-1]):
                builder.add_document(document, [len(document)])
        builder.finalize(f"{folder}/theirs.idx")

    return build


def _inspect(folder: Path, workers: int) -> Callable[[], object]:
    from nld_train.data.inspect_set import InspectRequest, inspect_set

    request = InspectRequest(str(folder / "set"), None, 512, 64, None, 0, None)
    return lambda: inspect_set(request, Console(quiet=True))


def _prompts(folder: Path, workers: int) -> Callable[[], object]:
    from nld_train.data.held_out_prompts import PromptRequest, write_prompts

    request = PromptRequest(str(folder / "set"), str(folder / "prompts.jsonl"), 16, 8, str(folder / "tokenizer"))
    write_prompts(request)  # imports
    return lambda: write_prompts(request)


ACTIONS: dict[str, Callable[[Path, int], Callable[[], object]]] = {
    "write .bin and .idx": _assemble,
    "the same with Megatron's builder": _megatron,
    "nld-data inspect": _inspect,
    "nld-data prompts": _prompts,
}


def show(rows: dict[str, dict[str, float]], documents: int) -> None:
    """Prints the figures as a table."""
    table = Table(f"{documents:,} documents", "seconds", "cores", "bytes of memory per document")
    for name, row in rows.items():
        table.add_row(name, f"{row['seconds']:.2f}", f"{row['cores']:.2f}", f"{row['bytes_per_document']:.1f}")
    Console(width=110, highlight=False).print(table)


if __name__ == "__main__":
    main()
