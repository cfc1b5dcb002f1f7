"""Settings beside a checkpoint, whichever version of this project wrote them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import yaml

from nld_train.config.load import config_from_dict, config_to_dict
from nld_train.config.schema import Config
from nld_train.errors import UserError


def _kind(stage: Mapping[str, Any]) -> str:
    """The kind of a stage that was written before stages named theirs."""
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
}


def read_saved_config(text: str, base: Config) -> Config:
    """The settings in a checkpoint's `config.yaml`, in the terms of this version.

    Args:
        text: of the file.
        base: gives the values of keys that the writer did not know yet. A stage that is not in it takes them from its
            first stage.

    Returns:
        The settings; keys that this version does not know any more are left out.

    Raises:
        UserError: this is no settings file, or a value is of a type that its key cannot have.
    """
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, Mapping):
        raise UserError("holds no settings")
    settings = with_keys_of_now(settings)
    defaults = config_to_dict(base)
    stages = settings.get("stages")
    if isinstance(stages, Mapping):
        first = next(iter(defaults["stages"].values()))
        defaults["stages"] = {name: defaults["stages"].get(name, first) for name in stages}
    return config_from_dict(_in_terms_of(defaults, settings))


def with_keys_of_now(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with the keys of `RENAMED` under their names of now, and those of `DERIVED` added.

    A key that is there already under its name of now stays as it is.
    """
    found = deepcopy(dict(settings))
    for old, new in RENAMED.items():
        *parents, name = old.split(".")
        for holder, names in list(_holders(found, parents)):
            if name in holder:
                *new_parents, new_name = _filled(new, names)
                _holder(found, new_parents).setdefault(new_name, holder.pop(name))
    for key, derive in DERIVED.items():
        *parents, name = key.split(".")
        for holder, _ in _holders(found, parents):
            if name not in holder:
                holder[name] = derive(holder)
    return found


def _holders(node: Any, parents: list[str], names: tuple[str, ...] = ()) -> Iterator[tuple[dict[str, Any], Any]]:
    """Every mapping under a path with wildcards, and what the wildcards stand for there."""
    if not isinstance(node, dict):
        return
    if not parents:
        yield node, names
        return
    first, *rest = parents
    for name in list(node) if first == "*" else [first]:
        yield from _holders(node.get(name), rest, (*names, name) if first == "*" else names)


def _filled(key: str, names: tuple[str, ...]) -> list[str]:
    """The parts of a key, its wildcards replaced by names, in order."""
    waiting = iter(names)
    return [next(waiting) if part == "*" else part for part in key.split(".")]


def _holder(node: dict[str, Any], parents: list[str]) -> dict[str, Any]:
    """The mapping under a path, made where there is none."""
    for name in parents:
        node = node.setdefault(name, {})
    return node


def _in_terms_of(defaults: Any, saved: Any) -> Any:
    """`saved` with exactly the keys of `defaults`, at every depth; all items of a list are like the first default."""
    if isinstance(defaults, list) and isinstance(saved, list) and defaults:
        return [_in_terms_of(defaults[0], item) for item in saved]
    if not isinstance(defaults, Mapping) or not isinstance(saved, Mapping):
        return saved
    return {name: _in_terms_of(value, saved[name]) if name in saved else value for name, value in defaults.items()}
