"""`nld-decode`: every kind of checkpoint, every mode, and one line for every mistake."""

from __future__ import annotations

import io
import json
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_helpers import short
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny_runs import newest_checkpoint, run_python

from nld_train.commands.decode import main
from nld_train.data.tokenizer import save_tokenizer, train_bpe
from nld_train.data.tokenizer_files import copy_tokenizer
from nld_train.training.checkpoint.manifest import MANIFEST, write_manifest

MODES = ("ar", "diffusion", "linear", "quadratic")
SHORT = ("--max-new-tokens", "20")
PROMPTS = ("seven times", "r\u00e9sum\u00e9 is", "and that ends here")


@pytest.fixture(scope="module")
def export(trained_export: Path) -> Path:
    return trained_export


@pytest.fixture(scope="module")
def imported(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from checkpoint_convert.importing import import_checkpoint

    folder = tmp_path_factory.mktemp("imports") / "imported"
    import_checkpoint(export, folder)
    return folder


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return path


@pytest.fixture
def records(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line with --json; returns its objects without the time."""

    def run(*words: object) -> list[dict[str, Any]]:
        assert main(short(*SHORT, *words, "--json")) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert all(record.pop("seconds") > 0 for record in found)
        return found

    return run


@pytest.mark.parametrize("mode", MODES)
def test_an_object_per_prompt(records: Any, export: Path, prompts_file: Path, mode: str) -> None:
    found = records(export, "--prompts", prompts_file, "--mode", mode)
    assert [record["prompt"] for record in found] == list(PROMPTS)
    for record in found:
        assert record["new_tokens"] == len(record["token_ids"]) <= 20
        assert record["tokens_per_forward"] == record["new_tokens"] / record["forwards"]
        assert record["prefill"] == 1
        assert record["text"] == bytes(token - 4 for token in record["token_ids"] if token > 3).decode(errors="replace")
    alone = [records(export, "--prompt", text, "--mode", mode)[0] for text in PROMPTS]
    assert alone == found
    assert records(export, "--prompts", prompts_file, "--mode", mode, "--batch-size", 2) == found


def test_a_comparison_has_every_mode(records: Any, export: Path, prompts_file: Path) -> None:
    found = records(export, "--prompts", prompts_file, "--compare")
    assert [record["mode"] for record in found] == [mode for mode in MODES for _ in PROMPTS]
    for mode in MODES:
        agreements = [record.pop("agreement") for record in found if record["mode"] == mode]
        assert mode == "diffusion" or agreements == [1.0] * len(PROMPTS)
        assert [record for record in found if record["mode"] == mode] == records(
            export, "--prompts", prompts_file, "--mode", mode
        )


@pytest.mark.parametrize(
    "sampled",
    [
        pytest.param((), id="greedy", marks=pytest.mark.long),
        pytest.param(("--temperature", 0.8, "--top-k", 40), id="sampled"),
    ],
)
@pytest.mark.parametrize("length", [pytest.param(2, marks=pytest.mark.long), 7])
def test_runs_checkpoints_exports_and_imports_decode_the_same(
    records: Any,
    trained: Path,
    export: Path,
    imported: Path,
    prompts_file: Path,
    sampled: tuple[object, ...],
    length: int,
) -> None:
    words = ("--prompts", prompts_file, "--compare", *sampled, "--block-length", length)
    found = [records(path, *words) for path in (trained, newest_checkpoint(trained), export, imported)]
    # The last prompt is admitted to the slot of one that has finished.
    found += [records(path, *words, "--batch-size", 2) for path in (trained, export)]
    assert all(other == found[0] for other in found[1:])
    assert any(record["new_tokens"] > 10 for record in found[0])


def test_seeds_are_those_of_the_prompts(records: Any, export: Path, prompts_file: Path) -> None:
    sampled = ("--mode", "linear", "--temperature", 1, "--top-k", 50, "--top-p", 0.9)
    found = records(export, "--prompts", prompts_file, *sampled, "--seed", 3)
    assert records(export, "--prompts", prompts_file, *sampled, "--seed", 3, "--batch-size", 1) == found
    assert records(export, "--prompt", PROMPTS[2], *sampled, "--seed", 5) == found[2:]
    assert records(export, "--prompts", prompts_file, *sampled, "--seed", 9) != found


def test_texts_that_stop(records: Any, export: Path) -> None:
    """At the first of two, in every mode, with the token that completes it; a special token is one of them."""
    for mode in MODES:
        words = ("--prompt", "seven times", "--mode", mode)
        (whole,) = records(export, *words)
        text, ids = whole["text"], whole["token_ids"]
        assert len(text) > 12
        stop = text[6:8]
        (found,) = records(export, *words, "--stop", "never there", "--stop", stop)
        assert found["finish"] == "stop"
        assert found["text"] == text[: text.index(stop) + 2]
        assert found["token_ids"] == ids[: len(found["token_ids"])]
        (same,) = records(export, *words, "--stop", "<pad>")
        assert same["token_ids"] == (ids[: ids.index(0) + 1] if 0 in ids else ids)


def test_the_ar_weight_mixes_both_heads(records: Any, export: Path, prompts_file: Path) -> None:
    words = ("--prompts", prompts_file, "--ar-weight", 0.2)
    alone = records(export, *words, "--mode", "quadratic")
    assert [record["mode"] for record in alone] == ["quadratic, AR weight 0.2"] * 3
    compared = records(export, *words, "--compare")
    assert min([record.pop("agreement") for record in compared[-3:]]) < 1
    assert compared[-3:] == alone
    assert all(record["agreement"] == 1 for record in compared if record["mode"] == "linear")


def test_without_a_block_length_it_is_that_of_the_training(
    trained: Path, export: Path, imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`diffusion.block_size` is 8 in the run, and so in its export and in an import of that."""
    for path in (trained, newest_checkpoint(trained), export, imported):
        forwards = []
        for given in ((), ("--block-length", "8"), ("--block-length", "4")):
            words = (
                str(path),
                "--mode",
                "diffusion",
                "--threshold",
                "0",
                *SHORT,
                "--prompt",
                "seven",
                "--json",
                *given,
            )
            assert main(list(words)) == 0
            forwards.append(json.loads(capsys.readouterr().out)["forwards"])
        assert forwards[0] == forwards[1] != forwards[2]


def test_a_comparison_shows_its_progress_on_standard_error(
    trained: Path, prompts_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bar of new tokens for each mode, on a console that acts as a terminal; each ends full."""
    shown = io.StringIO()
    streams: list[dict[str, Any]] = []

    def console(**settings: Any) -> Console:
        streams.append(settings)
        return Console(file=shown, force_terminal=True, width=100)

    monkeypatch.setattr("nld_train.console.plain_console", console)
    assert main(short(trained, "--prompts", prompts_file, "--compare", *SHORT, "--json")) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(MODES) * len(PROMPTS)
    assert streams[-len(MODES) :] == [{"stderr": True}] * len(MODES)
    lines = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown.getvalue()).splitlines()
    for number, mode in enumerate(MODES, start=1):
        bars = [line for line in lines if f"{mode} ({number} of 4)" in line]
        assert "60/60" in bars[-1]


def test_sampled_texts_are_not_compared_with_ar(records: Any, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--prompt", "seven", "--compare", "--temperature", 1)
    assert {record["agreement"] for record in records(export, *words)} == {None}
    assert main(short(export, *SHORT, *words)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.rstrip(" \u2502").endswith(" -") for line in lines) == len(MODES)


def test_what_is_shown_and_what_warms_up_is_not_timed(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mode of a comparison first decodes a few tokens that are not reported."""
    from nld_train.decoding.command_line import command

    calls: list[tuple[str, int]] = []

    def decode(engine: Any, prompts: Any, mode: Any, options: Any, *more: Any) -> Any:
        calls.append((mode, options.max_new_tokens))
        return real(engine, prompts, mode, options, *more)

    real = command.decode
    monkeypatch.setattr(command, "decode", decode)
    assert main(short(trained, *SHORT, "--prompt", "seven", "--compare", "--json")) == 0
    assert calls == [(mode, length) for mode in MODES for length in (8, 20)]
    assert len(capsys.readouterr().out.splitlines()) == len(MODES)


def test_the_table_shows_the_modes_side_by_side(
    trained: Path, prompts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(short(trained, "--prompts", prompts_file, "--compare", *SHORT)) == 0
    printed = capsys.readouterr().out
    assert all(f" {mode} " in printed for mode in MODES)
    assert printed.count("100.0%") >= 3


LONGER = ("--prompt", "seven times", "--max-new-tokens", "80", "--compare")


@pytest.fixture(scope="module")
def longer_texts(trained: Path) -> list[str]:
    """Of each mode, longer than a line of the table."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert main(short(trained, *SHORT, *LONGER, "--json")) == 0
    return [json.loads(line)["text"] for line in printed.getvalue().splitlines()]


@pytest.mark.parametrize(("columns", "width"), [(None, 120), ("80", 80)])
def test_the_table_has_one_line_per_mode(
    longer_texts: list[str],
    trained: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: str | None,
    width: int,
) -> None:
    """Of a text that is longer than there is room: 120 columns into a pipe, as many as there are on a terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    capsys.readouterr()
    assert main(short(trained, *SHORT, *LONGER)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == width
    assert len(lines) == len(MODES) + 4
    for mode, line, text in zip(MODES, lines[3:], longer_texts, strict=False):
        assert line.startswith(f"\u2502 {mode} ")
        assert ("\u2026 " in line) == (len(text) > 70)


def test_decoding_an_export_prints_nothing_else(export: Path) -> None:
    """Nor does a library beneath: in a process of its own, since libraries say some things once."""
    words = ["-m", "nld_train.commands.decode", str(export), "--prompt", "seven times", "--mode", "ar", *SHORT]
    done = run_python(words, timeout=120)
    assert done.status == 0
    assert done.output.startswith("seven times")
    assert done.output.splitlines()[-1].startswith("ar: ")
    assert "transformers" not in done.output
    assert "Loading" not in done.output


def test_plain_output_is_prompt_text_and_figures(
    records: Any, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = records(trained, "--prompt", "seven times", "--mode", "ar")
    assert main([str(trained), "--prompt", "seven times", "--mode", "ar", *SHORT]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("seven times")
    assert f"ar: {record['new_tokens']} tokens in " in printed
    assert "\x1b" not in printed


def test_a_terminal_sees_colours_and_growth(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every refresh, on a console that takes itself for a terminal."""
    from nld_train.decoding.command_line import command, terminal

    terminal_text = io.StringIO()
    console = Console(file=terminal_text, force_terminal=True, color_system="standard", width=80)
    monkeypatch.setattr(command, "plain_console", lambda **_: console)
    monkeypatch.setattr(terminal, "_REFRESH_SECONDS", 0.0)
    for mode in MODES:
        assert main(short(trained, "--prompt", "seven times", "--mode", mode, *SHORT)) == 0
        shown = terminal_text.getvalue()
        terminal_text.seek(0)
        terminal_text.truncate()
        assert "seven times" in shown
        assert "\x1b[2mseven times" in shown
        assert ("\u2591" in shown) == (mode == "diffusion")
        assert ("\x1b[9;31m" in shown) == (mode in ("linear", "quadratic"))


FITS = ["--prompt", "seven", "--max-new-tokens", "4"]
BAD = [
    (["--prompt", "seven", "--mode", "linear", "--block-length", "0"], "block_length: 0 is not 1 or more"),
    (["--prompt", "seven", "--mode", "diffusion", "--threshold", "1.5"], "threshold: 1.5 is not in [0, 1]"),
    (["--prompt", "seven", "--mode", "ar", "--threshold", "-1"], "threshold: -1.0 is not in [0, 1]"),
    (["--prompt", "seven", "--mode", "ar", "--temperature", "-1"], "temperature"),
    (["--prompt", "seven", "--mode", "ar", "--temperature", "1", "--top-p", "0"], "top_p"),
    (["--prompt", "seven", "--mode", "ar", "--max-new-tokens", "0"], "max_new_tokens"),
    (["--prompt", "seven", "--mode", "ar", "--batch-size", "0"], "--batch-size"),
    (["--prompt", "", "--mode", "ar"], "--prompt: is empty"),
    (["--prompt", "x" * 96, "--mode", "ar"], "prompt 0 has 96 tokens, which leaves no room in the context of 96"),
    (["--prompt", "one <mask> two", "--mode", "ar"], "prompt 0 contains the mask token (id 3)"),
    (["--prompt", "seven", "--mode", "linear", "--adapter"], "this model has no drafter adapter"),
    (["--prompt", "seven", "--mode", "ar", "--adapter"], "only linear does"),
    (["--prompt", "seven", "--mode", "ar", "--policy", "sampler"], "--policy: mode 'ar' has no denoising passes"),
    (["--prompt", "seven", "--mode", "linear", "--steps", "4"], "--steps: mode 'linear' has no denoising passes"),
    (["--prompt", "seven", "--mode", "diffusion", "--steps", "4"], "--steps: the policy 'threshold' does not read it"),
    (["--prompt", "seven", "--mode", "diffusion", "--sampler", "x"], "--sampler: the policy 'threshold' does not"),
    (["--prompt", "seven", "--mode", "linear", "--ar-weight", "0.5"], "--ar-weight: mode 'linear' does not mix"),
    (["--prompt", "seven", "--mode", "quadratic", "--ar-weight", "1.5"], "ar_weight: 1.5 is not in [0, 1]"),
    (["--prompt", "seven", "--mode", "ar", "--stop", "a", "--stop", ""], "--stop: an empty text"),
    (["--prompt", "seven"], "one of the arguments --mode --compare is required"),
    (["--prompt", "seven", "--mode", "ar", "--compare"], "--compare: not allowed with argument --mode"),
    (["--prompt", "seven", "--mode", "ar", "--threshold", "0.9"], "--threshold: mode 'ar' has no denoising passes"),
    (["--prompt", "seven", "--mode", "quadratic", "--threshold", "0.5"], "--threshold: mode 'quadratic' has no"),
    (["--prompt", "seven", "--mode", "ar", "--policy", "threshold"], "--policy: mode 'ar' has no denoising passes"),
    (["--prompt", "seven", "--mode", "ar", "--block-length", "8"], "--block-length: mode 'ar' has no blocks"),
    (["--prompt", "seven", "--mode", "ar", "--ar-weight", "1"], "--ar-weight: mode 'ar' does not mix"),
    (
        ["--prompt", "seven", "--mode", "diffusion", "--policy", "number", "--threshold", "0.9"],
        "--threshold: the policy 'number' does not read it",
    ),
    (["--prompt", "seven", "--mode", "ar", "--top-k", "5"], "--top-k: without a temperature nothing is sampled"),
    (["--prompt", "seven", "--compare", "--top-p", "0.9"], "--top-p: without a temperature nothing is sampled"),
    (["--prompt", "seven", "--mode", "linear", "--seed", "3"], "--seed: without a temperature nothing is sampled"),
    (["--prompt", "seven", "--mode", "linear", "--max-new-tokens", "92"], "92 do not fit into the context of 96"),
    (["--prompt", "seven", "--compare", "--max-new-tokens", "5000"], "at most 91 do"),
    ([*FITS, "--mode", "linear", "--block-length", "1000000000"], "block_length: 1000000000 is longer"),
    ([*FITS, "--mode", "quadratic", "--block-length", "64"], "computes 4160 positions in a pass"),
    (["--prompts", "nowhere.txt", "--mode", "ar"], "--prompts nowhere.txt: cannot be read"),
    (["--prompt", "seven", "--mode", "ar", "--tokenizer", "nowhere"], "no tokenizer directory nowhere"),
]


@pytest.mark.parametrize("kind", ["trained", "export"])
@pytest.mark.parametrize(("words", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_mistakes_are_one_line(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], kind: str, words: list[str], message: str
) -> None:
    path = request.getfixturevalue(kind)
    capsys.readouterr()
    assert refusal(capsys, str(path), *words).find(message) >= 0


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refused command."""
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("lines", "message"),
    [("", "holds no prompt"), ("seven\n\neight\n", ":2: the prompt is empty")],
)
def test_prompts_without_text_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str, message: str
) -> None:
    (tmp_path / "prompts.txt").write_text(lines)
    assert message in refusal(capsys, str(trained), "--mode", "ar", "--prompts", str(tmp_path / "prompts.txt"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "seven", "id": ' + b"9" * 5000 + b"}", ":2: has an integer of more than 4300 digits"),
        (b'{"prompt":' + b"[" * 100_000, ":2: is nested too deeply"),
        (b'["seven"]', ":2: holds a list, not an object with a text under 'prompt'"),
        (b'{"text": "seven"}', ":2: no key 'prompt' (text): each line must be an object with a text under 'prompt'"),
    ],
    ids=["digits", "nested", "list", "other key"],
)
def test_a_line_of_prompts_that_cannot_be_read_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes, message: str
) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(b'{"prompt": "one"}\n' + line + b"\n")
    said = refusal(capsys, str(trained), "--mode", "ar", "--prompts", str(tmp_path / "prompts.jsonl"))
    assert f"--prompts {tmp_path}/prompts.jsonl{message}" in said


def test_a_config_that_names_kernels_and_quantisation_changes_nothing(
    export: Path, tmp_path: Path, records: Any
) -> None:
    """An export from elsewhere: what its config asks of `transformers` is not done."""
    copy = shutil.copytree(export, tmp_path / "export")
    settings = {
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "auto_map": {"AutoModel": "evil/code--modeling.Model"},
        "dtype": "float16",
    }
    (copy / "config.json").write_text(json.dumps(json.loads((copy / "config.json").read_text()) | settings))
    words = ("--mode", "linear", "--prompt", "seven times")
    assert records(copy, *words) == records(export, *words)


def test_decoded_text_with_escapes_is_printable_json(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt is repeated in the record, and the model may write such characters as well."""
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "a\x1b[2J\x9b\u202e\x7fb"}) + "\n")
    capsys.readouterr()
    assert main([str(export), "--mode", "ar", "--prompts", str(tmp_path / "prompts.jsonl"), *SHORT, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert json.loads(line)["prompt"] == "a\x1b[2J\x9b\u202e\x7fb"


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--mode", "ar", "--prompt", "seven")
    assert "holds no checkpoint" in refusal(capsys, str(tmp_path), *words)
    assert "does not exist" in refusal(capsys, str(tmp_path / "nowhere"), *words)
    (tmp_path / "notes.txt").write_text("no model")
    assert "is no directory" in refusal(capsys, str(tmp_path / "notes.txt"), *words)
    (tmp_path / "config.json").write_text('{"model_type": "ministral3"}')
    assert "nld-convert import" in refusal(capsys, str(tmp_path), *words)


def test_a_damaged_checkpoint_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(newest_checkpoint(trained), tmp_path / "step")
    weights = max(copy.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    message = refusal(capsys, str(copy), "--mode", "ar", "--prompt", "seven")
    assert f"is damaged: {weights.name} does not have the content" in message


def test_a_checkpoint_brings_its_tokenizer(records: Any, trained: Path, tmp_path: Path) -> None:
    """To a machine that has nothing else of the run."""
    checkpoint = newest_checkpoint(trained)
    assert "tokenizer/tokenizer.json" in json.loads((checkpoint / MANIFEST).read_text())["files"]
    copy = shutil.copytree(checkpoint, tmp_path / "elsewhere")
    settings = yaml.safe_load((copy / "config.yaml").read_text())
    assert Path(settings["data"]["tokenizer"]).is_dir()
    settings["data"]["tokenizer"] = str(tmp_path / "nowhere")
    (copy / "config.yaml").write_text(yaml.safe_dump(settings))
    write_manifest(copy, {})
    words = ("--mode", "ar", "--prompt", "seven times")
    assert records(copy, *words) == records(checkpoint, *words)


def test_a_checkpoint_without_tokenizer_is_refused(
    imported: Path, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], records: Any
) -> None:
    for path in (imported, export):
        copy = shutil.copytree(path, tmp_path / path.name)
        kept = shutil.copytree(path, tmp_path / f"kept-{path.name}")
        for file in [*copy.rglob("tokenizer*.json"), *copy.rglob("special_tokens_map.json")]:
            file.unlink()
        if (copy / MANIFEST).is_file():  # it is not damaged: it never had them
            write_manifest(copy, {})
        capsys.readouterr()
        message = refusal(capsys, str(copy), "--mode", "ar", "--prompt", "seven")
        assert "no tokenizer was found" in message
        tokenizer = kept / "tokenizer" if (kept / "tokenizer").is_dir() else kept
        assert records(copy, "--mode", "ar", "--prompt", "seven", "--tokenizer", tokenizer)


@pytest.mark.parametrize("kind", ["trained", "imported", "export"])
def test_another_tokenizer_than_the_checkpoints_is_refused(
    request: pytest.FixtureRequest, records: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Its ids would be decoded as those of the checkpoint's, into other text. A copy is the same tokenizer."""
    path, export = request.getfixturevalue(kind), request.getfixturevalue("export")
    words = (str(path), "--mode", "ar", "--prompt", "seven times")
    for number, size in enumerate((260, 300)):
        save_tokenizer(train_bpe(["seven times seven"] * 9, size), str(tmp_path / f"bpe-{number}"))
        message = refusal(capsys, *words, "--tokenizer", str(tmp_path / f"bpe-{number}"))
        assert message.startswith(f"error: --tokenizer: {tmp_path}/bpe-{number} is another tokenizer (hash ")
    copy_tokenizer(export, tmp_path)
    assert records(*words, "--tokenizer", tmp_path) == records(*words)


@pytest.mark.parametrize("token", [1.5, 260, -1, True, "2", [2, 9999], {}])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_stop_token_that_is_no_id_is_refused(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, token: Any
) -> None:
    copy = shutil.copytree(export, tmp_path / "copy")
    values = json.loads((copy / name).read_text()) | {"eos_token_id": token}
    (copy / name).write_text(json.dumps(values))
    message = refusal(capsys, str(copy), "--mode", "ar", "--prompt", "seven")
    assert f"{name}: eos_token_id must be an id of the vocabulary of 260" in message


def test_an_export_with_nan_is_refused(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(export, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    tensors[name][0, 0] = torch.nan
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    message = refusal(capsys, str(copy), "--mode", "ar", "--prompt", "seven", *SHORT)
    assert f"tensor {name} contains NaN or infinity" in message
