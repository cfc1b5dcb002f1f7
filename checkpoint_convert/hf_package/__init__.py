"""The files that travel inside an exported model and make it run with `transformers` alone.

The modelling file imports the decoder's files as its neighbours, where they lie in an export. Here they lie in
`nld_train/decoding`, so that directory is searched as part of this package: the same files, in both places. Type
checkers do not follow a package's search path, hence the ignored imports.
"""

from __future__ import annotations

import ast
from pathlib import Path

DECODING = Path(__file__).resolve().parents[2] / "nld_train" / "decoding"
ENTRY_FILES = ("configuration_nemotron_labs_diffusion.py", "modeling_nemotron_labs_diffusion.py")

# What `config.json` of an export says under `auto_map`.
AUTO_MAP = {
    "AutoConfig": "configuration_nemotron_labs_diffusion.NemotronLabsDiffusionConfig",
    "AutoModel": "modeling_nemotron_labs_diffusion.NemotronLabsDiffusionModel",
    "AutoModelForCausalLM": "modeling_nemotron_labs_diffusion.NemotronLabsDiffusionModel",
}

__path__.append(str(DECODING))


def package_files() -> dict[str, Path]:
    """Every file that an export needs beside its weights: name in the export (flat) -> where it lies here.

    Follows relative imports from the two files that `auto_map` names, as `transformers` does when it loads them.
    """
    files: dict[str, Path] = {}
    open_names = list(ENTRY_FILES)
    while open_names:
        name = open_names.pop()
        if name not in files:
            files[name] = _find(name)
            open_names += [f"{module}.py" for module in _neighbours(files[name])]
    return dict(sorted(files.items()))


def _find(name: str) -> Path:
    """Where a file of the package lies; its own directory comes first.

    Raises:
        FileNotFoundError: it lies in neither.
    """
    for directory in (Path(__file__).resolve().parent, DECODING):
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{name}: neither in checkpoint_convert/hf_package nor in nld_train/decoding")


def _neighbours(path: Path) -> list[str]:
    """Modules that a file imports from its own directory."""
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return [node.module for node in imports if node.level == 1 and node.module]
