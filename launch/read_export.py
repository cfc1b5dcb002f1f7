"""Reads an export as its users do, with plain transformers: `python launch/read_export.py EXPORT PROMPTS.jsonl`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from nld_train.console import plain_console

# Blocks as long as those that the quickstart trains with.
NEW_TOKENS, BLOCK_LENGTH, SHOWN = 64, 16, 60


def main() -> None:
    """Continue the first prompt with each of the three generate methods."""
    directory, prompts = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    prompt = json.loads(Path(prompts).read_text().splitlines()[0])["prompt"]
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    calls = {
        "ar_generate": model.ar_generate(ids, NEW_TOKENS),
        "generate": model.generate(ids, NEW_TOKENS, block_length=BLOCK_LENGTH, threshold=0.9),
        "linear_spec_generate": model.linear_spec_generate(ids, NEW_TOKENS, block_length=BLOCK_LENGTH),
    }
    table = Table("transformers", "text", "new tokens", "forwards (nfe)")
    for name, (found, forwards) in calls.items():
        text = tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True).replace("\n", "⏎")
        table.add_row(name, text[:SHOWN], str(found.shape[1] - ids.shape[1]), str(forwards))
    plain_console(width=120).print(table)


if __name__ == "__main__":
    main()
