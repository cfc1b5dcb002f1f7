"""What the pages say of files and keys is so."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from documented_commands import PAGES, ROOT

from nld_train.config.schema import Config, StageConfig

PAGES_WITH_CHANGELOG = [*PAGES, ROOT / "CHANGELOG.md"]
_LINK = re.compile(r"\[[^\]]+\]\(([^)]+)\)")
_PATH = re.compile(r"`((?:nld_train|configs|launch|tests|docs|benchmarks|checkpoint_convert)/[\w./-]+)`")
_GROUPS = "|".join(field.name for field in fields(Config))
_KEY = re.compile(rf"`(?:--multirun )?((?:{_GROUPS})\.[\w.<>]+)")


def _anchors(page: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES_WITH_CHANGELOG, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked), target


@pytest.mark.parametrize("page", PAGES_WITH_CHANGELOG, ids=lambda page: page.name)
def test_paths_exist(page: Path) -> None:
    for path in _PATH.findall(page.read_text()):
        assert (ROOT / path).exists(), path


@cache
def _keys() -> frozenset[str]:
    return frozenset(_walk(Config, ""))


def _walk(kind: Any, prefix: str) -> list[str]:
    hints = get_type_hints(kind)
    keys = []
    for field in fields(kind):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        if type(None) in get_args(hint):
            hint = next((choice for choice in get_args(hint) if is_dataclass(choice)), hint)
        keys.append(key)
        if is_dataclass(hint):
            keys += _walk(hint, f"{key}.")
        elif key == "stages":
            keys += _walk(StageConfig, "stages.<name>.")
    return keys


@pytest.mark.parametrize("page", PAGES_WITH_CHANGELOG, ids=lambda page: page.name)
def test_keys_exist(page: Path) -> None:
    for found in _KEY.findall(page.read_text()):
        key = re.sub(r"^stages\.(?:ar|joint|sft|drafter)\.", "stages.<name>.", found.rstrip("."))
        # Files that are named like a group of keys, and a class.
        file = key.endswith((".json", ".yaml", ".safetensors", ".lock", ".log"))
        assert key in _keys() or file or key == "config.ModelConfig", found


def test_every_page_is_listed_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in readme


def test_metrics_page_names_every_key() -> None:
    training = ROOT / "nld_train/training"
    sources = [
        training / "metrics/records.py",
        training / "metrics/registry.py",
        *(training / "stages").glob("*_trainer.py"),
    ]
    written = [key for path in sources for key in re.findall(r'^ +"(\w+)":', path.read_text(), re.MULTILINE)]
    assert len(written) > 25
    page = (ROOT / "docs/training.md").read_text()
    for key in written:
        assert f"`{key}`" in page, key


_CITATION = re.compile(r'docs/method\.md,\s+(?:#\s+)?\\?"([^"\\]+)\\?"')
_CITING = ("nld_train", "checkpoint_convert", "benchmarks", "launch", "tests", "configs", "docs")


def _sources() -> list[Path]:
    """Python, YAML, shell and Markdown files of the repository."""
    suffixes = {".py", ".yaml", ".md", ".sh", ".sbatch"}
    found = [path for folder in _CITING for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    return [path for path in found if path != Path(__file__).resolve()]


def test_cited_sections_of_the_method_page_exist() -> None:
    titles = re.findall(r"^## (.+)$", (ROOT / "docs/method.md").read_text(), re.MULTILINE)
    cited = {(path.name, title) for path in _sources() for title in _CITATION.findall(path.read_text())}
    assert len(cited) > 5
    assert [(name, title) for name, title in cited if title not in titles] == []


def test_sections_are_cited_by_their_titles_alone() -> None:
    """Numbers would point to nothing in this repository."""
    numbered = re.compile(r"reference,? section|\bDefect [0-9]", re.IGNORECASE)
    pages = [*_sources(), ROOT / "README.md", ROOT / "CHANGELOG.md"]
    assert [path.name for path in pages if numbered.search(path.read_text())] == []
