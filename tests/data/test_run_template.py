"""The chat template of a run is that of its conversations, and not that of its tokenizer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import composed

from nld_train.config.schema import Config, SourceConfig
from nld_train.data.chat.default import default_template
from nld_train.data.chat.run_template import (
    own_template,
    require_one_template,
    run_template,
    template_file,
    template_note,
    with_template,
)
from nld_train.data.manifest import ChatManifest, Manifest
from nld_train.data.tokenizer import load_tokenizer, save_tokenizer, train_bpe
from nld_train.data.tokenizer_files import read_tokenizer, write_tokenizer
from nld_train.errors import UserError


def write_description(prefix: Path, template: str | None) -> SourceConfig:
    """The manifest of a set, of conversations with a template, which are never read here."""
    chat = None
    if template is not None:
        chat = ChatManifest(hashlib.sha256(template.encode()).hexdigest(), "all", 2, 3, 3, 2, 5)
        template_file(str(prefix)).write_text(template)
    manifest = Manifest(1, [], {}, "", "", "", 6, None, 2, 5, 5, "uint16", "", "", {}, chat=chat)
    manifest.write(f"{prefix}.manifest.json")
    return SourceConfig(str(prefix), 1.0)


def run_of(*sources: SourceConfig) -> Config:
    """A run whose last stage has its own sets, and whose first has those of `data.train`."""
    config = composed("run.stages=[ar,joint]")
    config = replace(config, data=replace(config.data, train=sources[:1]))
    joint = replace(config.stages["joint"], train=sources[1:])
    return replace(config, stages={**config.stages, "joint": joint})


def test_the_last_stage_with_conversations_has_it(tmp_path: Path) -> None:
    names = {"text": None, "first": "1 {{ messages }}", "second": "2 {{ messages }}"}
    sets = {name: write_description(tmp_path / name, template) for name, template in names.items()}
    assert run_template(run_of(sets["text"], sets["text"])) is None
    assert run_template(run_of(sets["text"], sets["first"])) == names["first"]
    assert run_template(run_of(sets["first"], sets["second"])) == names["second"]
    assert run_template(run_of(sets["first"], sets["text"])) == names["first"]
    assert run_template(run_of(sets["first"], SourceConfig(str(tmp_path / "gone"), 1.0))) == names["first"]


def test_two_templates_in_a_stage_are_refused(tmp_path: Path) -> None:
    sources = [write_description(tmp_path / name, f"{name} {{{{ messages }}}}") for name in ("one", "two")]
    with pytest.raises(UserError, match=r"stages\.sft\.train: .*one and .*two were rendered with different chat temp"):
        require_one_template("stages.sft.train", sources)
    assert require_one_template("stages.sft.train", [sources[1], sources[1]]) == str(tmp_path / "two")


def test_a_template_that_was_changed_is_refused(tmp_path: Path) -> None:
    source = write_description(tmp_path / "set", "{{ messages }}")
    template_file(source.prefix).write_text("{{ messages }} ")
    with pytest.raises(UserError, match=r"set\.chat_template\.jinja is not the template with which .*set was rendered"):
        require_one_template("stages.sft.train", [source])
    template_file(source.prefix).unlink()
    with pytest.raises(UserError, match=r"set\.chat_template\.jinja: No such file"):
        require_one_template("stages.sft.train", [source])


@pytest.mark.parametrize("form", ["file", "string", "list"])
def test_it_replaces_the_tokenizers(tmp_path: Path, form: str) -> None:
    """In whatever form that has one: `transformers` then knows only the new one, and the user reads a line."""
    save_tokenizer(train_bpe(["text"], 260), str(tmp_path / "own"), chat_template=default_template())
    files = read_tokenizer(tmp_path / "own")
    if form != "file":
        template = files.pop("chat_template.jinja").decode()
        given = template if form == "string" else [{"name": "default", "template": template}]
        settings = json.loads(files["tokenizer_config.json"]) | {"chat_template": given}
        files["tokenizer_config.json"] = json.dumps(settings).encode()
    assert own_template(files) == default_template()
    other = "{% for m in messages %}\u00e9 {{ m.content }}{% endfor %}"
    source = write_description(tmp_path / "set", other)
    note = template_note(run_of(source, source), files)
    assert note is not None
    assert "is that of the conversations, and not that of data.tokenizer" in note
    write_tokenizer(with_template(files, other), tmp_path / "new")
    assert load_tokenizer(str(tmp_path / "new")).chat_template == other
    assert "chat_template" not in json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())
    assert template_note(run_of(source, source), read_tokenizer(tmp_path / "new")) is None
