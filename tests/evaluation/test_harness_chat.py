"""`nld-eval --apply-chat-template`: the prompts of lm_eval's own models, and the texts of `nld-decode --chat`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from command_helpers import short
from tokenizers import AddedToken, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nld_train.commands import decode, eval
from nld_train.data.chat import default
from nld_train.data.tokenizer import bytes_tokenizer
from nld_train.decoding.load import find_source
from nld_train.errors import UserError
from nld_train.evaluation.harness import model as harness
from nld_train.evaluation.harness.chat_settings import ChatSettings

TASKS = Path(__file__).with_name("harness_tasks")
TEMPLATE = Path(default.__file__).with_name("default.jinja")
QUESTIONS = [json.loads(line)["question"] for line in (TASKS / "documents.jsonl").read_text().splitlines()]
LOOP = "{% for message in messages %}"
CHATML = (
    LOOP + "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Spells BOS, which the tokenizer also puts before a text, and has no system role.
MISTRAL = (
    "{{ bos_token }}" + LOOP + "{% if message.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif message.role == 'user' %}[INST]{{ message.content }}[/INST]"
    "{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
)
FORMS = {
    "one message": {"fewshot_as_multiturn": False},
    "turns": {"fewshot_as_multiturn": True},
    "system": {"fewshot_as_multiturn": True, "system_instruction": "Be brief."},
}


@cache
def tokenizer(name: str) -> Any:
    definition = bytes_tokenizer()
    if name == "mistral":
        definition.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=definition, bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"
    )
    borders = ("<|im_start|>", "<|im_end|>", "[INST]", "[/INST]")
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in borders])
    made.chat_template = {"chatml": CHATML, "mistral": MISTRAL}[name]
    return made


@cache
def reference(name: str) -> Any:
    """lm_eval's model of transformers with this tokenizer; its weights are not used."""
    from lm_eval.models.huggingface import HFLM

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, **shape))
    return HFLM(pretrained=model, tokenizer=tokenizer(name), device="cpu", batch_size=1)


@pytest.fixture
def ours(trained_export: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], harness.NldModel]]:
    opened: list[harness.NldModel] = []

    def build(made: Any, **chat: Any) -> harness.NldModel:
        source = replace(find_source(trained_export), tokenizer=made)
        monkeypatch.setattr(harness, "find_source", lambda *_: source)
        opened.append(harness.NldModel("here", chat=ChatSettings(**chat) if chat else None))
        return opened[-1]

    yield build
    # In reverse: each restores the gradient mode that it found.
    for model in reversed(opened):
        model.close()


def requests(model: Any, task_name: str, **form: Any) -> list[Any]:
    """The requests of a task with two examples, as lm_eval builds them with a model."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    task = manager.load([task_name])["tasks"][task_name]
    task.set_config(key="num_fewshot", value=2)
    task.set_config(key="description", value="Answer. ")
    task.set_fewshot_seed(0)
    task.build_all_requests(
        limit=3,
        rank=0,
        world_size=1,
        apply_chat_template=True,
        chat_template=model.apply_chat_template,
        tokenizer_name=model.tokenizer_name,
        **form,
    )
    return list(task.instances)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["chatml", "mistral"])
def test_prompts_are_those_of_lm_evals_own_model(ours: Callable[[Any], Any], name: str, form: str) -> None:
    model, other = ours(tokenizer(name)), reference(name)
    texts, expected = (requests(each, "local_text", **FORMS[form]) for each in (model, other))
    assert len(texts) == 3
    for one, two in zip(texts, expected, strict=True):
        assert one.args[0] == two.args[0]
        ids = other.tok_batch_encode([two.args[0]])[0][0].tolist()
        assert model.tok_encode(one.args[0]) == ids
        assert ids.count(1) == (name == "mistral")
    choices, expected = (requests(each, "local_choice", **FORMS[form]) for each in (model, other))
    for one, two in zip(choices, expected, strict=True):
        assert model._encode_pair(*one.args) == other._encode_pair(*two.args)


def test_a_system_message_that_a_template_refuses_is_said_once(
    ours: Callable[[Any], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = ours(tokenizer("mistral"))
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert [model.apply_chat_template(messages) for _ in range(2)] == ["<s>[INST]b[/INST]"] * 2
    assert capsys.readouterr().err.count("no system role; system messages are left out") == 1
    answer = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "so"}]
    assert model.apply_chat_template(answer, add_generation_prompt=False) == "<s>[INST]b[/INST]so"


def test_one_of_several_templates(ours: Callable[..., Any], trained_export: Path) -> None:
    made = find_source(trained_export).tokenizer
    made.chat_template = {"default": CHATML, "short": "{{ messages[0].content }}"}
    messages = [{"role": "user", "content": "b"}]
    model = ours(made, apply_chat_template="short")
    assert model.apply_chat_template(messages) == "b"
    assert model.chat_template(True) == CHATML
    assert model.apply_chat_template(messages) == "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    assert model.chat_template(False) is None
    assert ours(made, apply_chat_template=True).tokenizer_name != model.tokenizer_name
    with pytest.raises(UserError, match="no chat template named 'long'; its templates are default, short"):
        ours(made, apply_chat_template="long")


@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear", "quadratic"])
def test_texts_are_those_of_a_chat(
    trained_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    output = tmp_path / "results.json"
    common = ["--mode", mode, "--chat-template", TEMPLATE, "--max-new-tokens", "20"]
    harnessed = ["--tasks", "local_text", "local_choice", "--include-path", TASKS, "--log-samples", "--output", output]
    given = short(trained_export, *common, *harnessed, "--apply-chat-template", "--system-instruction", "ends")
    assert eval.main(given) == 0
    results = json.loads(output.read_text())
    found = sorted(results["samples"]["local_text"], key=lambda sample: sample["doc_id"])
    assert results["evaluation"]["chat"]["system_instruction"] == "ends"
    assert results["evaluation"]["chat"]["fewshot_as_multiturn"] is True
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS))
    capsys.readouterr()
    assert decode.main(short(trained_export, *common, "--chat", "--system", "ends", "--prompts", rows, "--json")) == 0
    texts = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    stops = ("is", "s e", "zzz")
    assert [sample["resps"][0][0] for sample in found] == [
        min((text.partition(stop)[0] for stop in stops), key=len) for text in texts
    ]
    assert any(texts)
