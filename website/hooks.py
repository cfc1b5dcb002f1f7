"""What MkDocs does beside its configuration: links that leave `docs/`, the API reference, and the table of modes.

The pages are also read as plain files of the repository, where a link leads to a source file. On the site it leads to
the API reference of that module, whose page is made here; a link to any other file becomes its name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Those of the project, and where their text is on the site.
_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\(\.\./(?P<path>[^)#]+)(?P<anchor>#[^)]*)?\)")
_PACKAGES = ("nld_train/", "checkpoint_convert/")
_REFERENCE = "reference"
_TABLE = "<!-- table of modes -->"


def on_files(files: Files, config: Any) -> Files:
    """Adds a page of the API reference for each module that a page links to, and an overview of them."""
    linked: dict[str, None] = {}
    for file in files.documentation_pages():
        for match in _LINK.finditer(file.content_string):
            if _is_module(match["path"]):
                linked.setdefault(match["path"])
    modules = sorted(linked)
    for path in modules:
        name = _module(path)
        body = f"# `{name}`\n\n::: {name}\n    options:\n      show_root_heading: false\n"
        files.append(File.generated(config, _page(path), content=body))
    rows = "\n".join(f"- [`{_module(path)}`]({_page(path).removeprefix(f'{_REFERENCE}/')})" for path in modules)
    intro = "# API reference\n\nThe modules that the other pages link to, from their docstrings.\n\n"
    files.append(File.generated(config, f"{_REFERENCE}/index.md", content=f"{intro}{rows}\n"))
    return files


def on_config(config: Any) -> Any:
    """Puts the overview of the API reference at the end of the navigation."""
    config.nav.append({"API reference": f"{_REFERENCE}/index.md"})
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites the links that leave `docs/`, and fills in the table of the README."""
    if _TABLE in markdown:
        markdown = markdown.replace(_TABLE, table_of_modes((ROOT / "README.md").read_text(encoding="utf-8")))
    if page.file.src_uri.startswith(_REFERENCE):
        return markdown
    return _LINK.sub(_on_site, markdown)


def table_of_modes(readme: str) -> str:
    """The first table of the README whose columns are the decode modes."""
    found = re.search(r"^\|[^\n]*\| AR \| diffusion \| linear \| quadratic \|\n(?:\|[^\n]*\n)+", readme, re.MULTILINE)
    if found is None:
        raise ValueError("README.md has no table of the decode modes")
    return found[0]


def _is_module(path: str) -> bool:
    return path.startswith(_PACKAGES) and path.endswith(".py")


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _page(path: str) -> str:
    return f"{_REFERENCE}/{_module(path)}.md"


def _on_site(match: re.Match[str]) -> str:
    path, anchor = match["path"], match["anchor"] or ""
    if _is_module(path):
        return f"[{match['text']}]({_page(path)})"
    if path == "README.md":
        return f"[{match['text']}](index.md{anchor})"
    text = match["text"]
    return text if "`" in text else f"{text} (`{path}`)"
