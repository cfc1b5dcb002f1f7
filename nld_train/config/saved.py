"""Reads the settings saved in a checkpoint, by this or an earlier version of the project."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from nld_train.config.load import config_from_dict, config_to_dict
from nld_train.config.schema import Config
from nld_train.errors import UserError
from nld_train.outside_json import parse_yaml


def _kind(stage: Mapping[str, Any]) -> str:
    """The kind of a stage in a file from before `stages.NAME.kind` existed."""
    if stage.get("adapter") is not None:
        return "drafter"
    alpha = stage.get("alpha")
    return "joint" if isinstance(alpha, int | float) and alpha > 0 else "ar"


# Keys of earlier versions and what they are called now. `*` stands for any name, the same in both.
RENAMED: dict[str, str] = {
    "stages.*.adapter.alpha": "stages.*.adapter.lora_alpha",
    "stages.*.adapter.block_length": "stages.*.adapter.block_size",
}
# Keys that earlier versions did not have and that follow from the keys beside them.
DERIVED: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "stages.*.kind": _kind,
    # Without a LoRA all weights were trained, whatever the stage of the current settings does.
    "stages.*.lora": lambda beside: None,
    "stages.*.ar_weight": lambda beside: 1.0,
    "diffusion.clean": lambda beside: "causal",
    # Without a vision tower, whose weights might have been left as they were.
    "model.vision": lambda beside: None,
    "stages.*.trained_weights": lambda beside: "all",
}


def read_saved_config(text: str | bytes, base: Config) -> Config:
    """The settings in a checkpoint's `config.yaml`, under the keys of this version.

    Args:
        text: of the file.
        base: gives the values of keys that the file does not have. For a stage that `base` does not have they are
            those of the first stage of `base`.

    Returns:
        The settings; keys that this version does not know any more are left out.

    Raises:
        UserError: the text contains no settings, or a value is of a type that its key cannot have.
    """
    settings = parse_yaml(text, "settings")
    if not isinstance(settings, Mapping):
        raise UserError("holds no settings")
    settings = with_current_keys(settings)
    defaults = config_to_dict(base)
    stages = settings.get("stages")
    if isinstance(stages, Mapping):
        first = next(iter(defaults["stages"].values()))
        defaults["stages"] = {name: defaults["stages"].get(name, first) for name in stages}
    return config_from_dict(_with_keys_of(defaults, settings))


def with_current_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with the keys of `RENAMED` under their current names, and those of `DERIVED` added.

    A key that already exists under its current name is not changed.
    """
    found = deepcopy(dict(settings))
    for old, new in RENAMED.items():
        *parents, name = old.split(".")
        for mapping, names in list(_mappings(found, parents)):
            if name in mapping:
                *new_parents, new_name = _fill_wildcards(new, names)
                _mapping(found, new_parents).setdefault(new_name, mapping.pop(name))
    for key, derive in DERIVED.items():
        *parents, name = key.split(".")
        for mapping, _ in _mappings(found, parents):
            if name not in mapping:
                mapping[name] = derive(mapping)
    return found


def _mappings(node: Any, parents: list[str], names: tuple[str, ...] = ()) -> Iterator[tuple[dict[str, Any], Any]]:
    """Every mapping under a path with wildcards, and the names that match the wildcards."""
    if not isinstance(node, dict):
        return
    if not parents:
        yield node, names
        return
    first, *rest = parents
    for name in list(node) if first == "*" else [first]:
        yield from _mappings(node.get(name), rest, (*names, name) if first == "*" else names)


def _fill_wildcards(key: str, names: tuple[str, ...]) -> list[str]:
    """The parts of a key, its wildcards replaced by names, in order."""
    remaining = iter(names)
    return [next(remaining) if part == "*" else part for part in key.split(".")]


def _mapping(node: dict[str, Any], parents: list[str]) -> dict[str, Any]:
    """The mapping under a path, created if it is missing."""
    for name in parents:
        node = node.setdefault(name, {})
    return node


def _with_keys_of(defaults: Any, saved: Any) -> Any:
    """`saved` with exactly the keys of `defaults`, at every depth; all items of a list are like the first default."""
    if isinstance(defaults, list) and isinstance(saved, list) and defaults:
        return [_with_keys_of(defaults[0], item) for item in saved]
    if not isinstance(defaults, Mapping) or not isinstance(saved, Mapping):
        return saved
    return {name: _with_keys_of(value, saved[name]) if name in saved else value for name, value in defaults.items()}
