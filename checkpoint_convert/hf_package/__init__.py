"""The Python files of an exported model, which runs with `transformers` alone.

An export is one flat directory and must not import this project. Its files are copies of the files here and of the
modules of `nld_train` that they import: decoding, visibility, objective and noise schedule. Only import statements
differ: `from nld_train.decoding.engines.engine import Step` here, `from .engine import Step` in an export.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

PACKAGE = "checkpoint_convert.hf_package"
_CONFIGURATION, _MODELING = "configuration_nemotron_labs_diffusion", "modeling_nemotron_labs_diffusion"
_SERVER = "serve.py"
# `auto_map` names the first two; the last is a command.
ENTRY_FILES = (f"{_CONFIGURATION}.py", f"{_MODELING}.py", _SERVER)
# Of a vision-language model.
VISION_ENTRY_FILES = (f"{_CONFIGURATION}_vlm.py", f"{_MODELING}_vlm.py", _SERVER)

# `auto_map` in `config.json` of an export.
AUTO_MAP = {
    "AutoConfig": "configuration_nemotron_labs_diffusion.NemotronLabsDiffusionConfig",
    "AutoModel": "modeling_nemotron_labs_diffusion.NemotronLabsDiffusionModel",
    "AutoModelForCausalLM": "modeling_nemotron_labs_diffusion.NemotronLabsDiffusionModel",
}

VISION_AUTO_MAP = {
    "AutoConfig": f"{_CONFIGURATION}_vlm.NemotronLabsDiffusionVLMConfig",
    **dict.fromkeys(
        ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText"),
        f"{_MODELING}_vlm.NemotronLabsDiffusionVLMModel",
    ),
}

_ROOT = Path(__file__).resolve().parents[2]
_OWN_IMPORT = re.compile(r"^(\s*)from (?:nld_train|checkpoint_convert)(?:\.\w+)*\.(\w+) import", re.MULTILINE)


def package_files(vision: bool = False) -> dict[str, str]:
    """Text of every Python file of an export, by name.

    Follows imports from the entry files, as `transformers` does from those that `auto_map` names when it loads an
    export.

    Args:
        vision: of a vision-language model.

    Raises:
        AssertionError: two modules have the same file name, or an import has a form that cannot be rewritten.
    """
    modules: dict[str, str] = {}
    open_modules = [f"{PACKAGE}.{name.removesuffix('.py')}" for name in (VISION_ENTRY_FILES if vision else ENTRY_FILES)]
    while open_modules:
        module = open_modules.pop()
        name = module.rpartition(".")[2]
        assert modules.get(name, module) == module, f"{module} and {modules[name]} have one name in an export"
        if name not in modules:
            modules[name] = module
            open_modules += _own_imports(_source(module))
    return {f"{name}.py": _flattened(_source(module)) for name, module in sorted(modules.items())}


def _source(module: str) -> str:
    return _ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()


def _own_imports(source: str) -> list[str]:
    """Modules of this project that a file imports."""
    nodes = list(ast.walk(ast.parse(source)))
    found = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return [module for module in found if module.split(".")[0] in ("nld_train", "checkpoint_convert")]


def _flattened(source: str) -> str:
    """The text with relative imports: in an export all modules of this project are in one directory."""
    flattened = _OWN_IMPORT.sub(r"\1from .\2 import", source)
    assert not _own_imports(flattened), _own_imports(flattened)
    return flattened
