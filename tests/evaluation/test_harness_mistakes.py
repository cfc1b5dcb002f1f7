"""`nld-eval`: mistakes of a user, one line each, and what tasks may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from nld_train.commands import eval

TASKS = Path(__file__).with_name("harness_tasks")

BAD = [
    (["--tasks", "locel_choice"], "'locel_choice' is no task; nearest: local_choice"),
    (["--tasks", "arc_eazy"], "'arc_eazy' is no task; nearest: arc_easy"),
    (["--tasks", "paper_base"], "allow it with --unsafe-code"),
    (["--tasks", "paper_base", "paper_instruct"], "the lists differ in chat_template"),
    (["--mode", "linear", "--block-length", "0"], "--block-length: 0 is not 1 or more"),
    (["--block-length", "8"], "--block-length: mode 'ar' has no blocks; only diffusion, linear and quadratic do"),
    (["--threshold", "0.9"], "--threshold: mode 'ar' has no denoising passes; only diffusion does"),
    (["--samples", "32"], "--samples: mode 'ar' computes no bound of likelihoods; only diffusion does"),
    (["--log-samples"], "--log-samples: documents and answers are part of --output and --json"),
    (["--output", str(TASKS)], "harness_tasks: is a folder; name a file"),
    (["--max-new-tokens", "96"], "--max-new-tokens: 96 is not less than the model's context of 96"),
    (["--batch-size", "0"], "--batch-size: 0 is not 1 or more"),
    (["--mode", "diffusion", "--samples", "1"], "--samples: 1 is not 2 or more"),
    (["--likelihood", "ar"], "--likelihood: mode 'ar' cannot choose between two likelihoods; only diffusion does"),
    (["--mode", "diffusion", "--likelihood", "ar", "--samples", "4"], "--samples: likelihoods of AR are exact"),
    (["--mode", "diffusion", "--tasks", "paper_base", "--samples", "4"], "--samples: likelihoods of AR are exact"),
    (["--threshold", "1.5"], "--threshold: 1.5 is not in [0, 1]"),
    (["--max-new-tokens", "0"], "--max-new-tokens: 0 is not 1 or more"),
    (["--policy", "sampler"], "--policy: mode 'ar' has no denoising passes"),
    (["--mode", "diffusion", "--policy", "sampler"], "holds no trained sampler"),
    (["--mode", "diffusion", "--policy", "number", "--number", "0"], "0 positions per pass"),
    (["--mode", "diffusion", "--entropy", "0.5"], "--entropy: the policy 'threshold' does not read it"),
    (["--cuda-graphs", "on"], "error: cuda_graphs: no cycle can run as one: they need a CUDA device"),
    (["--limit", "0"], "--limit: 0 is not 1 or more"),
    (["--num-fewshot", "-1"], "--num-fewshot: -1 is not 0 or more"),
    (["--adapter"], "only linear does"),
    (["--mode", "linear", "--adapter"], "has no drafter adapter"),
    (["--mode", "linear", "--adapter", "nowhere"], "nowhere"),
    (["--include-path", "nowhere"], "--include-path: there is no folder nowhere"),
    (["--output", "nowhere/results.json"], "--output nowhere/results.json: there is no folder"),
    (["--tokenizer", "nowhere"], "no tokenizer directory nowhere"),
    (["--apply-chat-template"], "--apply-chat-template: the tokenizer has no chat template; name one with"),
    (["--fewshot-as-multiturn"], "--fewshot-as-multiturn: prompts are put into no chat template"),
    (["--fewshot-as-multiturn", "often"], "'often' is neither true nor false"),
    (["--chat-template", "nowhere.jinja"], "--chat-template: prompts are put into no chat template"),
    (["--chat-template-args", "{}"], "--chat-template-args: prompts are put into no chat template"),
    (["--tasks", "local_masked"], "contains the mask token (id 3)"),
    (["--tasks", "local_absent"], "local_absent cannot be loaded"),
]


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder of lm_eval's own tasks: it takes many seconds to read its thousands of files."""
    from lm_eval.tasks import manager

    monkeypatch.setattr(manager, "__file__", str(Path(manager.__file__).parent / "arc" / "manager.py"))


@pytest.mark.long
def test_a_misspelt_name_is_compared_with_all_tasks(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for given, nearest in (("locel_choice", "local_choice"), ("hellaswagg", "hellaswag")):
        words = ["--mode", "ar", "--tasks", given, "--include-path", str(TASKS)]
        assert eval.main([str(trained), *words]) == 2
        assert f"{given!r} is no task; nearest: {nearest}" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("few_tasks")
@pytest.mark.parametrize(("more", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_mistakes_are_one_line(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    (tmp_path / "local.py").write_text((TASKS / "local.py").read_text())
    (tmp_path / "documents.jsonl").write_text((TASKS / "documents.jsonl").read_text())
    text = (TASKS / "text.yaml").read_text()
    masked = text.replace("local_text", "local_masked").replace('"{{question}}"', '"{{question}}<mask>"')
    (tmp_path / "masked.yaml").write_text(masked)
    absent = text.replace("local_text", "local_absent").replace("local.load", "local.gone")
    (tmp_path / "absent.yaml").write_text(absent)
    given = ["--mode", "ar", "--tasks", "local_text", "--include-path", str(TASKS), "--include-path", str(tmp_path)]
    capfd.readouterr()
    assert eval.main([str(trained), *given, *more]) == 2
    captured = capfd.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert message in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err


def test_a_missing_template_is_found_before_the_weights(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from checkpoint_convert import decoding_sources

    monkeypatch.setattr(decoding_sources, "open_megatron", lambda *_: pytest.fail("opened"))
    options = ["--mode", "ar", "--tasks", "local_text", "--include-path", str(TASKS), "--apply-chat-template"]
    assert eval.main([str(trained), *options]) == 2
    assert "--apply-chat-template: the tokenizer has no chat template" in capfd.readouterr().err.splitlines()[-1]


UNSUPPORTED = [
    ("num_beams: 4", "num_beams=4 is not supported; only max_gen_toks"),
    ("repetition_penalty: 1.2", "repetition_penalty=1.2 is not supported"),
    ("min_p: 0.1", "min_p=0.1 is not supported"),
    ("seed: 7", "seed=7 is not supported"),
    ("max_gen_toks: 0", "max_gen_toks: 0 is not 1 or more"),
    ("max_gen_toks: many", "generation_kwargs of local_wrong: invalid literal"),
    ("max_tokens: -5", "max_gen_toks: -5 is not 1 or more"),
    ("max_gen_toks: 96", "max_gen_toks 96 is not less than the model's context of 96; give --max-new-tokens"),
    ("temperature: -1\n  do_sample: true", "temperature: -1.0 is not 0 or more"),
    ("top_p: 2\n  do_sample: true", "top_p: 2.0 is not in (0, 1]"),
    ("top_k: -1\n  do_sample: true", "top_k: -1 is not 0 or more"),
    ("until: [5]", "until: [5] is neither a text nor a list of texts"),
]


@pytest.mark.parametrize(("argument", "message"), UNSUPPORTED, ids=[argument[:20] for argument, _ in UNSUPPORTED])
def test_a_task_that_asks_for_what_is_not_supported_is_refused_before_the_weights(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    argument: str,
    message: str,
) -> None:
    from checkpoint_convert import decoding_sources

    monkeypatch.setattr(decoding_sources, "open_megatron", lambda *_: pytest.fail("opened"))
    for name in ("local.py", "documents.jsonl"):
        (tmp_path / name).write_text((TASKS / name).read_text())
    text = (TASKS / "text.yaml").read_text().replace("local_text", "local_wrong")
    kept, _, rest = text.partition('  until: ["is", "s e", "zzz"]\n  max_gen_toks: 20\n')
    (tmp_path / "wrong.yaml").write_text(f"{kept}  {argument}\n{rest}")
    words = ["--mode", "ar", "--tasks", "local_wrong", "--include-path", str(tmp_path)]
    assert eval.main([str(trained), *words]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --tasks: generation_kwargs of local_wrong: ")
    assert message in error


def test_arguments_that_change_nothing_are_accepted() -> None:
    from nld_train.evaluation.harness.generation_arguments import TextLimits, generation_settings
    from nld_train.evaluation.harness.requests import GenerationSettings

    neutral = {"num_beams": 1, "repetition_penalty": 1.0, "use_cache": True, "min_p": None, "length_penalty": 1}
    limits = TextLimits(None, 96)
    assert generation_settings(neutral, limits) == GenerationSettings(48)
    assert generation_settings({"max_tokens": 7, "until": "."}, limits) == GenerationSettings(7, (".",))
    assert generation_settings({"max_gen_toks": 2048}, TextLimits(20, 96)) == GenerationSettings(20)


def test_a_prompt_that_fills_the_context_leaves_half_of_it_for_the_text(trained: Path) -> None:
    from nld_train.evaluation.harness.model import NldModel

    model = NldModel(str(trained), mode="linear")
    assert model.resolved["block_length"] == 8
    try:
        for most, size, room in ((20, 76, 20), (60, 48, 48)):
            generation = model._generation("x" * 200, {"max_gen_toks": most}, ())
            assert (len(generation.prompt), generation.settings.max_new_tokens) == (size, room)
    finally:
        model.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("paper_instrukt", "nearest: paper_instruct"),
        ("qqqqqqqqqqqq", "is no task; see"),
        ("text", "nearest: local_text"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, message: str) -> None:
    from lm_eval.tasks import TaskManager

    from nld_train.errors import UserError
    from nld_train.evaluation.harness.tasks import load_tasks

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    with pytest.raises(UserError, match=message):
        load_tasks([name], manager)
