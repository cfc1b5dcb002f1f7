"""Exports of a model that was fine-tuned on conversations: template, stop tokens, card, and the same answers."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import chat_templates
import instruct_runs
import pytest
from hugging_face_sources import Source
from instruct_runs import ALPHA, BLOCK_SIZE, QUESTIONS
from tiny_runs import newest_checkpoint, records_of, write_token_set

from checkpoint_convert.card_results import results
from checkpoint_convert.checkpoints import read_record
from checkpoint_convert.cli import main
from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.importing import import_checkpoint
from nld_train.data.chat.prompt import ChatFormat
from nld_train.decoding import DecodeOptions, Threshold
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.load import find_source

END_OF_TURN = 261  # <|im_end|>
ONE_PROCESS = ("parallel.tensor=1", "parallel.context=1", "parallel.sequence=false")


def settings_of(directory: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / name).read_text())
    return found


def test_template_stop_tokens_and_objective_are_those_of_the_training(instruct: dict[str, Path]) -> None:
    """The template of the set, not that of the tokenizer; the end of its turns beside the ends of the base model."""
    for directory in instruct.values():
        assert (directory / "chat_template.jinja").read_text() == chat_templates.CHATML
        assert "chat_template" not in settings_of(directory, "tokenizer_config.json")
        generation = settings_of(directory, "generation_config.json")
        assert generation["eos_token_id"] == [2, 5, END_OF_TURN]
        assert generation["temperature"] == 0.15
    config = settings_of(instruct["nld"], "config.json")
    expected = {"dlm_loss_weight": ALPHA, "dlm_blocks": "answer", "dlm_fill": True, "block_size": BLOCK_SIZE}
    assert {key: config[key] for key in expected} == expected


def test_the_card_is_that_of_an_instruct_model(instructed: Path, instruct: dict[str, Path]) -> None:
    card = (instruct["nld"] / "README.md").read_text()
    _, metadata, text = card.split("---\n", 2)
    lines = metadata.splitlines()
    for line in ('license: "other"', 'license_name: "tiny"', 'base_model: "maker/base"', '- "fr"', "- conversational"):
        assert line in lines
    assert (instruct["nld"] / "LICENSE").read_text() == "Terms.\n"
    assert "batch = tokenizer.apply_chat_template(messages, **form, enable_thinking=False)" in text
    assert f"| {ALPHA} | global |" in text
    assert "counted from the start of each answer, the last block of an answer is filled up" in text
    assert "originally `maker/base`" in text
    assert "`chat` (weight 1), 48 conversations" in text
    last = [record["validation"] for record in records_of(instructed / "run") if "validation" in record][-1]
    losses = [last["ar_loss"], *last["diffusion_loss"].values()]
    assert f"| sft | {' | '.join(f'{loss:.4f}' for loss in losses)} |" in text


def test_the_card_has_what_was_measured(instructed: Path, tmp_path: Path) -> None:
    """Up to the step of the checkpoint; scores are those of the newest checkpoint."""
    run = shutil.copytree(instructed / "run", tmp_path / "run")
    records = records_of(run)
    figures = {"agreement": 1.0, "tokens_per_second": 9.0, "prefill": 1}
    for record, forwards in ((records[9], 2.5), (records[-1], 3.25)):
        modes = {"ar": figures | {"tokens_per_forward": 1.0, "exact": 0.5}}
        modes["linear"] = figures | {"tokens_per_forward": forwards, "exact": 0.875}
        record["decoding"] = {"modes": modes, "agreements": {}, "samples": [], "seconds": 1.0, "share": 0.1}
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    scored = {"exact": 0.25, "tokens_per_forward": 1.5}
    (run / "scores.json").write_text(json.dumps({"ar": {"all": scored, "copy": scored}, "linear": {"all": scored}}))
    checkpoint = newest_checkpoint(run)
    text = "\n".join(results(read_record(checkpoint)))
    assert "| Mode | Tokens per forward | Equal to AR | Exact |" in text
    assert "| linear | 3.25 | 100.0% | 87.5% |" in text
    assert "| Kind | ar | linear |" in text
    assert "| all | 25.0% at 1.50 | 25.0% at 1.50 |" in text
    assert "| copy | 25.0% at 1.50 |  |" in text
    earlier = shutil.copytree(checkpoint, checkpoint.with_name("step_00000010"))
    progress = settings_of(earlier, "progress.json") | {"step": 10, "stage_step": 10}
    (earlier / "progress.json").write_text(json.dumps(progress))
    text = "\n".join(results(read_record(earlier)))
    assert "| linear | 2.50 |" in text
    assert f"| sft | {records[9]['validation']['ar_loss']:.4f} |" in text
    assert "Kind" not in text


@pytest.mark.long
def test_it_answers_as_in_training(instructed: Path, instruct: dict[str, Path]) -> None:
    """Through the interface of transformers, in every mode, token for token; the stock model too."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel

    model = NemotronLabsDiffusionModel.from_pretrained(instruct["nld"])
    stock = AutoModelForCausalLM.from_pretrained(instruct["ministral3"])
    tokenizer = AutoTokenizer.from_pretrained(instruct["nld"])
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    diffusion = partial(model.generate, threshold=0.9)
    calls = {"ar": model.ar_generate, "diffusion": diffusion, "linear": model.linear_spec_generate}
    calls |= {"quadratic": model.quadratic_spec_generate}
    source = find_source(instructed / "run")
    prompts = [ChatFormat(source.tokenizer).prompt(messages, "the question")[1] for messages in conversations]
    options = DecodeOptions(max_new_tokens=24, block_length=BLOCK_SIZE, stop_tokens=source.stop_tokens)
    ended = 0
    with source.open() as engine:
        for mode, call in calls.items():
            policy = Threshold(0.9) if mode == "diffusion" else None
            expected = decode(engine, prompts, mode, options, policy).token_ids  # type: ignore[arg-type]
            for messages, prompt, ids in zip(conversations, prompts, expected, strict=True):
                batch = tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
                )
                assert batch["input_ids"][0].tolist() == prompt
                found = [call(**batch, max_new_tokens=24)[0]]
                if mode == "ar":
                    found.append(stock.generate(**batch, max_new_tokens=24, do_sample=False))
                assert all(tokens[0, len(prompt) :].tolist() == ids for tokens in found)
                ended += ids[-1] == END_OF_TURN and len(ids) < 24
    assert ended > len(calls), "most answers end with the end of the turn"


@pytest.mark.long
@pytest.mark.parametrize("output_format", ["nld", "ministral3"])
def test_the_examples_of_the_card_run(
    instruct: dict[str, Path],
    output_format: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """As they are, but for the question; nobody is asked whether the code may be run."""
    import builtins

    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path))
    # An export that another test loaded has bound the package of copied code to another folder.
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked"))
    card = (instruct[output_format] / "README.md").read_text()
    monkeypatch.chdir(instruct[output_format].parent)
    examples = [part.split("```")[0] for part in card.split("```python\n")[1:]]
    assert len(examples) == (2 if output_format == "nld" else 1)
    variables: dict[str, Any] = {}
    for example in examples:
        exec(example.replace('"..."', repr(QUESTIONS[0])), variables)
        assert capsys.readouterr().out.strip()


def test_verify_agrees_and_an_import_keeps_everything(
    instructed: Path, instruct: dict[str, Path], tmp_path: Path
) -> None:
    for directory in instruct.values():
        assert main(["verify", str(instructed / "run"), str(directory), "--tensors-only"]) == 0
    import_checkpoint(instruct["nld"], tmp_path / "imported", report=lambda _: None)
    said: list[str] = []
    export_checkpoint(tmp_path / "imported", tmp_path / "again", "nld", report=said.append)
    assert len(said) == 1
    for name in ("config.json", "generation_config.json", "chat_template.jinja", "tokenizer_config.json", "LICENSE"):
        assert (tmp_path / "again" / name).read_text() == (instruct["nld"] / name).read_text(), name
    card = (tmp_path / "again" / "README.md").read_text()
    assert 'license_name: "tiny"' in card
    assert 'base_model: "maker/base"' in card


def test_license_and_languages_can_be_named(
    instructed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(instructed / "run"), str(tmp_path / "out"), "--format", "nld", "--license"]
    assert main([*words, "my license\n"]) == 2
    assert "--license my license" in capsys.readouterr().err
    assert main([*words, "apache-2.0", "--language", "English"]) == 2
    assert "--language English: must be a code such as en" in capsys.readouterr().err
    assert main([*words, "apache-2.0", "--language", "en", "--language", "de"]) == 0
    metadata = (tmp_path / "out" / "README.md").read_text().split("---\n")[1]
    assert 'license: "apache-2.0"' in metadata
    assert "license_name" not in metadata
    assert 'language:\n- "en"\n- "de"\n' in metadata


def test_without_the_sets_the_checkpoint_has_the_template(instructed: Path, tmp_path: Path) -> None:
    """And with another tokenizer directory of the same ids, whose template is another one."""
    checkpoint = shutil.copytree(newest_checkpoint(instructed / "run"), tmp_path / "checkpoint")
    shutil.copytree(instructed / "models--maker--base" / "snapshots" / "plain", tmp_path / "plain")
    said: list[str] = []
    export_checkpoint(checkpoint, tmp_path / "out", "nld", tokenizer=tmp_path / "plain", report=said.append)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == chat_templates.CHATML
    assert any("the chat template is that of the training" in line for line in said)
    assert "## Results" not in (tmp_path / "out" / "README.md").read_text(), "those are beside the run"


@pytest.mark.parametrize("kind", ["wrapper", pytest.param("nld", marks=pytest.mark.long), "export"])
def test_every_kind_of_directory_is_a_start(
    kind: str, instructed: Path, instruct: dict[str, Path], tmp_path: Path
) -> None:
    """Of `experiment=sft_8b`: the multimodal wrapper, a released model, an export. The plain one is that of the run."""
    base = instruct["nld"] if kind == "export" else instruct_runs.write_base(tmp_path, Source(kind, kind=kind))
    if kind == "nld":
        config = settings_of(base, "config.json") | {"mask_token_id": 3}
        (base / "config.json").write_text(json.dumps(config))
    run = instruct_runs.tune(instructed, tmp_path / "run", base, *ONE_PROCESS, group="experiment=sft_8b")
    export_checkpoint(run, tmp_path / "out", "nld", report=lambda _: None)
    assert settings_of(tmp_path / "out", "generation_config.json")["eos_token_id"] == [2, 5, END_OF_TURN]
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == chat_templates.CHATML


def test_a_control_says_that_diffusion_was_not_trained(instructed: Path, tmp_path: Path) -> None:
    base = instructed / "models--maker--base" / "snapshots" / "plain"
    run = instruct_runs.tune(instructed, tmp_path / "run", base, "stages.sft.alpha=0")
    export_checkpoint(run, tmp_path / "out", "nld", report=lambda _: None)
    assert "(alpha 0): block diffusion was **not trained** there" in (tmp_path / "out" / "README.md").read_text()
    assert settings_of(tmp_path / "out", "config.json")["dlm_loss_weight"] == 0


@pytest.mark.long
def test_a_later_run_on_texts_is_still_asked_in_the_template(instructed: Path, tmp_path: Path) -> None:
    prefix = write_token_set(tmp_path / "text", 1)
    text = f"[{{prefix: {prefix}, weight: 1}}]"
    overrides = ("run.stages=[ar]", "stages.ar.tokens=768", f"data.train={text}", f"data.validation={text}")
    tokenizer = f"data.tokenizer={instructed}/models--maker--base/snapshots/plain"
    before = instructed / "run"
    run = instruct_runs.tune(
        instructed, tmp_path / "run", before, *overrides, tokenizer, group="stages=[quickstart,sft]"
    )
    assert find_source(run).tokenizer.chat_template == chat_templates.CHATML
    export_checkpoint(run, tmp_path / "out", "nld", report=lambda _: None)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == chat_templates.CHATML
    assert settings_of(tmp_path / "out", "generation_config.json")["eos_token_id"] == [2, 5, END_OF_TURN]
