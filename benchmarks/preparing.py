"""Preparations of text, run by `benchmarks.data` in a process of their own: prints seconds and tokens as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import islice
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


def tiktoken_lines(text: Path, tokenizer: Path, out: Path) -> Callable[[], int]:
    """`tiktoken` on the vocabulary of a byte-level BPE, document by document: tokens are written as one array."""
    import numpy as np
    import tiktoken
    from tokenizers import Tokenizer

    from nld_train.data.word_encoder import byte_characters, word_pattern

    fast = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    bytes_of = {character: bytes([byte]) for byte, character in enumerate(byte_characters())}
    # Special tokens are no sequences of bytes.
    ordinary = {token: rank for token, rank in fast.get_vocab(with_added_tokens=False).items() if rank >= 4}
    ranks = {b"".join(bytes_of[character] for character in token): rank for token, rank in ordinary.items()}
    pattern = word_pattern(fast)
    assert pattern is not None, "no byte-level BPE"
    encoding = tiktoken.Encoding("benchmark", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    end = fast.token_to_id("</s>")

    def run() -> int:
        tokens = 0
        with text.open() as lines, out.open("wb") as stream:
            for line in lines:
                ids = np.array([*encoding.encode_ordinary(json.loads(line)["text"]), end], dtype=np.int32)
                ids.tofile(stream)
                tokens += len(ids)
        return tokens

    return run


def tokenizers_batches(text: Path, tokenizer: Path, out: Path) -> Callable[[], int]:
    """`encode_batch_fast` of `tokenizers` over batches of 1,000 documents: tokens are written as one array."""
    import numpy as np
    from tokenizers import Tokenizer

    fast = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    end = fast.token_to_id("</s>")

    def run() -> int:
        tokens = 0
        with text.open() as lines, out.open("wb") as stream:
            while batch := [json.loads(line)["text"] for line in islice(lines, 1000)]:
                for encoding in fast.encode_batch_fast(batch, add_special_tokens=False):
                    ids = np.array([*encoding.ids, end], dtype=np.int32)
                    ids.tofile(stream)
                    tokens += len(ids)
        return tokens

    return run


OURS = "nld-data prepare"
IMPLEMENTATIONS = {
    OURS: nld_data,
    "datasets.map": datasets_map,
    "tiktoken": tiktoken_lines,
    "tokenizers": tokenizers_batches,
}


def main() -> None:
    """Arguments: the implementation, a short text and a long one, the tokenizer and a folder for the results.

    What is printed is how much more the long text takes: loading the tokenizer is no part of it.
    """
    implementation, tokenizer, out = sys.argv[1], Path(sys.argv[4]), Path(sys.argv[5])
    out.mkdir()
    short, long = (_measured(implementation, Path(text), tokenizer, out / Path(text).stem) for text in sys.argv[2:4])
    print(json.dumps({name: long[name] - short[name] for name in long}))


def _measured(implementation: str, text: Path, tokenizer: Path, out: Path) -> dict[str, float]:
    run = IMPLEMENTATIONS[implementation](text, tokenizer, out)
    wall, processor = time.perf_counter(), _processor_time()
    tokens = run()
    return {"tokens": tokens, "wall": time.perf_counter() - wall, "processor": _processor_time() - processor}


def _processor_time() -> float:
    """Processor time of this process and its children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
