"""Runs in an environment without this project; prints what an export decodes as one JSON object.

decode_an_export.py DIRECTORY REQUEST, where REQUEST is JSON with `ids` and `mask` (rows of a padded batch), `new` and
`block`. Without PEFT the object has the error of drafting with an adapter. An access to the network
ends the process.
"""

import importlib.metadata
import importlib.util
import json
import socket
import sys

ABSENT = ("nld_train", "checkpoint_convert", "megatron", "hydra", "datasets", "wandb", "lm_eval")


def refuse(*_: object, **__: object) -> None:
    raise OSError("no network in this test")


def main() -> None:
    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, refuse)
    socket.getaddrinfo = socket.create_connection = refuse
    assert [name for name in ABSENT if importlib.util.find_spec(name) is not None] == []

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory, request = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    ids, mask = torch.tensor(request["ids"]), torch.tensor(request["mask"])
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    settings = {"max_new_tokens": request["new"], "attention_mask": mask}
    blocks = {**settings, "block_length": request["block"]}
    calls = {
        "ar": model.ar_generate(ids, **settings),
        "diffusion": model.generate(ids, threshold=0.5, **blocks),
        "linear": model.linear_spec_generate(ids, adapter=False, **blocks),
    }
    refusal = None
    try:
        calls["linear with adapter"] = model.linear_spec_generate(ids, adapter=True, **blocks)
    except ImportError as error:
        refusal = str(error)
    answers = {name: {"ids": out.tolist(), "nfe": nfe} for name, (out, nfe) in calls.items()}
    answers["refusal"] = refusal
    answers["text"] = tokenizer.decode(ids[0][mask[0].bool()])
    answers["modules"] = sorted({name.split(".")[0] for name in sys.modules})
    answers["distributions"] = sorted(d.metadata["Name"].lower() for d in importlib.metadata.distributions())
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
