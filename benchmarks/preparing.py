"""One preparation of text, run by `benchmarks.data` in its own process: prints seconds and tokens as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path


def nld_data(text: Path, tokenizer: Path, out: Path) -> Callable[[], int]:
    """`nld-data prepare` with one worker process: tokens are written as `.bin` and `.idx`."""
    from rich.console import Console

    from nld_train.data.packed import indexed_dataset_module
    from nld_train.data.prepare import prepare
    from nld_train.data.request import PrepareRequest
    from nld_train.data.sources import SourceSettings
    from nld_train.data.tokenizer import load_tokenizer

    # Lazy imports of both are done here, outside of the timed part.
    load_tokenizer(str(tokenizer))
    indexed_dataset_module()
    settings = SourceSettings(
        format="jsonl",
        text_key="text",
        documents_per="file",
        glob="**/*",
        split="train",
        dataset_config=None,
        encoding_errors="strict",
        shard_bytes=8 << 20,
    )
    request = PrepareRequest((str(text),), str(out), "set", str(tokenizer), settings)

    def run() -> int:
        return sum(manifest.tokens for manifest in prepare(request, Console(quiet=True)).values())

    return run


def datasets_map(text: Path, tokenizer: Path, out: Path) -> Callable[[], int]:
    """`datasets.map` over batches, as in the usual recipes: tokens are written as Arrow."""
    from datasets import Dataset, load_dataset
    from transformers import AutoTokenizer

    encoder = AutoTokenizer.from_pretrained(str(tokenizer))
    end = encoder.eos_token_id

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = encoder(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*each, end] for each in ids]}

    def run() -> int:
        read: Dataset = load_dataset("json", data_files=str(text), split="train", cache_dir=str(out))
        encoded = read.map(encode, batched=True, remove_columns=["text"])
        return len(encoded.data.column("input_ids").combine_chunks().flatten())

    return run


def main() -> None:
    """Arguments: the implementation, the text, the tokenizer and a folder for the result."""
    implementation, text, tokenizer, out = sys.argv[1], *map(Path, sys.argv[2:5])
    run = (nld_data if implementation == "nld-data prepare" else datasets_map)(text, tokenizer, out)
    wall, processor = time.perf_counter(), _processor_time()
    tokens = run()
    print(
        json.dumps({"tokens": tokens, "wall": time.perf_counter() - wall, "processor": _processor_time() - processor})
    )


def _processor_time() -> float:
    """Processor time of this process and its children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
