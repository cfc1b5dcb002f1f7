"""The documentation site: every page is in its navigation, and what the hooks make of links and the README's table."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from documented_commands import ROOT

SETTINGS = (ROOT / "mkdocs.yml").read_text()


def _pages(node: Any) -> list[str]:
    if isinstance(node, str):
        return [node]
    children = node.values() if isinstance(node, dict) else node
    return [page for child in children for page in _pages(child)]


def test_every_page_is_in_the_navigation_once() -> None:
    found = _pages(yaml.safe_load(SETTINGS)["nav"])
    assert sorted(found) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def hooks() -> Any:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    sys.path.insert(0, str(ROOT / "website"))
    try:
        import hooks
    finally:
        sys.path.pop(0)
    return hooks


class _Page:
    def __init__(self, uri: str) -> None:
        self.file = type("File", (), {"src_uri": uri})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[`noise.py`](../nld_train/masking/noise.py)", "[`noise.py`](reference/nld_train.masking.noise.md)"),
        ("[schema](../nld_train/config/schema/__init__.py)", "[schema](reference/nld_train.config.schema.md)"),
        ("[start](../README.md#quickstart)", "[start](index.md#quickstart)"),
        ("[`a.json`](../benchmarks/a.json) and", "`a.json` and"),
        ("[test](../tests/data/test_x.py)", "test (`tests/data/test_x.py`)"),
        ("[page](data.md#order)", "[page](data.md#order)"),
    ],
)
def test_links_that_leave_the_folder(hooks: Any, text: str, expected: str) -> None:
    assert hooks.on_page_markdown(text, _Page("data.md")) == expected


def test_the_first_page_has_the_table_of_the_readme(hooks: Any) -> None:
    shown = hooks.on_page_markdown((ROOT / "docs/index.md").read_text(), _Page("index.md"))
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if re.match(r"\| (copy|all) \|", line)]
    assert len(rows) == 2
    assert all(row in shown for row in rows)


def test_pictures_are_there() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text()):
            begin = {".png": b"\x89PNG", ".svg": b"<?xml"}[Path(picture).suffix]
            assert (page.parent / picture).read_bytes().startswith(begin), picture


def test_citation_has_the_version_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load(Path(ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
