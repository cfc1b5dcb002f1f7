"""Runs in an environment with vLLM and without this project: greedy answers of vLLM's own engine.

vllm_worker.py REQUEST OUT. REQUEST is a file of JSON: a list of objects with `directory`, `prompts` (lists of token
ids), `pictures` (the file of a picture per prompt, or null), `messages` (conversations instead of prompts), `new`
(tokens to decode), `length` (of the context) and `settings` (of `vllm.LLM`). OUT is written as JSON, too: for each
object a list of answers, or `{"error": ..}`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

# In this process, so that a time limit of the caller ends all of it; nothing is fetched or reported.
os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
)


def answers(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Text, tokens and log-probabilities, one entry per prompt, or per conversation where there are `messages`."""
    if any(case["pictures"]):
        importlib.import_module("torchvision")  # vLLM needs it for pictures, and says so in its log only
    from vllm import LLM, SamplingParams

    model = LLM(
        case["directory"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=case["length"],
        max_num_seqs=4,
        **case["settings"],
    )
    greedy = SamplingParams(temperature=0, max_tokens=case["new"], logprobs=0, ignore_eos=True)
    if case["messages"]:
        return list(map(answer, model.chat(case["messages"], greedy, use_tqdm=False)))
    prompts = list(map(prompt, case["prompts"], case["pictures"]))
    return list(map(answer, model.generate(prompts, greedy, use_tqdm=False)))


def prompt(ids: list[int], picture: str | None) -> dict[str, Any]:
    """What `LLM.generate` takes: ids, with one `[IMG]` for the picture if there is one."""
    from PIL import Image

    seen = {"multi_modal_data": {"image": Image.open(picture).convert("RGB")}} if picture else {}
    return {"prompt_token_ids": ids, **seen}


def answer(output: Any) -> dict[str, Any]:
    """The first answer of a `RequestOutput`."""
    first = output.outputs[0]
    tokens = list(first.token_ids)
    logprobs = [step[token].logprob for token, step in zip(tokens, first.logprobs, strict=True)]
    return {"prompt": list(output.prompt_token_ids), "text": first.text, "tokens": tokens, "logprobs": logprobs}


def main() -> None:
    request, out = map(Path, sys.argv[1:])
    found: list[Any] = []
    for case in json.loads(request.read_text()):
        try:
            found.append(answers(case))
        except Exception as error:
            found.append({"error": f"{type(error).__name__}: {error}"})
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
