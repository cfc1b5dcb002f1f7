"""From composed YAML to the frozen dataclasses of `schema`, and back.

The conversion follows the type hints, so that a key is added in `schema` and nowhere else. Only what is
declared there is accepted: an unknown or missing key and a value of another type are refused with the key's full
dotted name.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nld_train.config.schema import Config, ModelConfig, RopeParameters
from nld_train.errors import UserError
from nld_train.outside_json import brief, is_finite_number, parse_yaml

# Of a wrong value in a message.
_SHOWN_CHARACTERS = 80
_SIMPLE_TYPES = {bool: "true or false", int: "an integer", float: "a number", str: "text", types.NoneType: "null"}


def load_config(composed: DictConfig) -> Config:
    """Turn what Hydra composed into a `Config`.

    Raises `UserError` for an unknown or missing key, a value of a wrong type, and an interpolation that cannot be
    resolved.
    """
    try:
        settings = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from error
    return config_from_dict(settings)


def config_from_dict(settings: Any) -> Config:
    """Turn nested dictionaries, as `config_to_dict` makes them, into a `Config`; raises `UserError`."""
    return _convert(settings, Config, "")


def model_from_dict(settings: Any) -> ModelConfig:
    """The model shapes saved in a checkpoint, from nested dictionaries as `dataclasses.asdict` makes them.

    A missing optional key is null: a feature that was added later is off in older files.

    Raises:
        UserError: names the first key that is unknown, missing, or of another type.
    """
    if isinstance(settings, Mapping) and isinstance(rope := settings.get("rope_parameters"), Mapping):
        optional = [name for name, hint in get_type_hints(RopeParameters).items() if types.NoneType in get_args(hint)]
        settings = {**settings, "rope_parameters": {**dict.fromkeys(optional), **rope}}
    return _convert(settings, ModelConfig, "")


def config_to_dict(config: Config) -> dict[str, Any]:
    """The settings as nested dictionaries and lists of plain values, ready for YAML or JSON."""
    return _plain(asdict(config))


def config_to_yaml(config: Config) -> str:
    """The resolved settings as YAML text, in the order of `schema`, as saved in a checkpoint."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)


def config_from_yaml(text: str) -> Config:
    """Read back what `config_to_yaml` wrote: an equal `Config`. Raises `UserError` for anything else."""
    return config_from_dict(parse_yaml(text, "configuration"))


def unknown_key_message(key: str, valid_names: Sequence[str]) -> str:
    """One line about a dotted key whose last part is none of `valid_names`, with the nearest of them.

    Under a mapping whose names are the user's, such as `stages`, it says how to add an entry.
    """
    parent, _, name = key.rpartition(".")
    close = get_close_matches(name, valid_names, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    adding = "" if (entry := _entry_type(parent)) is None else f"; add a new one with '+{key}={_example(entry)}'"
    return f"{key}: unknown key;{hint} valid under {parent or 'the root'}: {', '.join(valid_names)}{adding}"


def _entry_type(key: str) -> Any:
    """The class of the entries of a mapping of names in `Config`, by its dotted key; None for any other key."""
    hint: Any = Config
    for name in key.split("."):
        hint = get_type_hints(hint).get(name) if is_dataclass(hint) else None
    return get_args(hint)[1] if get_origin(hint) is dict else None


def _example(kind: Any) -> str:
    """The keys that an object of a dataclass must have, in the form of an override."""
    hints = get_type_hints(kind)
    required = [field.name for field in fields(kind) if field.default is MISSING]
    values = (_example(hints[name]) if is_dataclass(hints[name]) else "..." for name in required)
    return "{" + ", ".join(f"{name}: {value}" for name, value in zip(required, values, strict=True)) + "}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _convert(value: Any, hint: Any, key: str) -> Any:
    """Return `value` as the type of `hint`, or raise `UserError` with `key`."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, hint, key)
    if is_dataclass(hint):
        return _convert_dataclass(value, hint, key)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(item, get_args(hint)[0], f"{key}[{index}]") for index, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {name: _convert(item, get_args(hint)[1], f"{key}.{name}") for name, item in value.items()}
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in get_args(hint)):
        return value
    if origin is None:
        return _convert_simple(value, hint, key)
    raise _wrong_type(value, hint, key)


def _convert_union(value: Any, hint: Any, key: str) -> Any:
    """Convert to the first alternative that accepts the value. An error inside a nested type names the key there."""
    alternatives = get_args(hint)
    if value is None and types.NoneType in alternatives:
        return None
    others = [alternative for alternative in alternatives if alternative is not types.NoneType]
    nested = [a for a in others if is_dataclass(a) or (get_origin(a) is tuple and isinstance(value, list | tuple))]
    if nested:
        return _convert(value, nested[0], key)
    for alternative in others:
        try:
            return _convert(value, alternative, key)
        except UserError:
            continue
    raise _wrong_type(value, hint, key)


def _convert_dataclass(value: Any, hint: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong_type(value, hint, key)
    prefix = f"{key}." if key else ""
    hints = get_type_hints(hint)
    names = [field.name for field in fields(hint)]
    for name in value:
        if name not in names:
            raise UserError(unknown_key_message(f"{prefix}{name}", names))
    if missing := dict(_missing(value, hint, prefix)):
        raise UserError(_missing_message(missing))
    given = [name for name in names if name in value]
    return hint(**{name: _convert(value[name], hints[name], f"{prefix}{name}") for name in given})


def _missing(value: Any, hint: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Names and types of the keys that are missing in an object of a dataclass, and in those inside it."""
    hints = get_type_hints(hint)
    for field in fields(hint):
        inner = hints[field.name]
        if field.name not in value and field.default is MISSING:
            yield f"{prefix}{field.name}", inner
        elif is_dataclass(inner) and isinstance(value.get(field.name), Mapping):
            yield from _missing(value[field.name], inner, f"{prefix}{field.name}.")


def _missing_message(missing: Mapping[str, Any]) -> str:
    (first, hint), *others = missing.items()
    if not others:
        return f"{first}: missing; must be {describe_type(hint)}"
    listed = ", ".join(f"{name} ({describe_type(hint)})" for name, hint in missing.items())
    return f"{len(missing)} keys are missing: {listed}"


def _convert_simple(value: Any, hint: Any, key: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and not is_finite_number(value):
        raise _wrong_type(value, hint, key)
    if hint is int and number and value == int(value):
        return int(value)
    if hint is float and number:
        return float(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise _wrong_type(value, hint, key)


def _wrong_type(value: Any, hint: Any, key: str) -> UserError:
    shown = repr(value) if isinstance(value, str) and len(value) < _SHOWN_CHARACTERS else brief(value)
    quote = " (put it in quotes)" if hint is str and isinstance(value, int | float) else ""
    return UserError(f"{key or 'configuration'}={shown}: must be {describe_type(hint)}{quote}")


def describe_type(hint: Any) -> str:
    """The values of a type hint, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        choices = ", ".join(str(choice) for choice in arguments)
        return choices if len(arguments) == 1 else f"one of {choices}"
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(alternative) for alternative in arguments)
    if origin is tuple:
        return f"a list, each item {describe_type(arguments[0])}"
    if origin is dict:
        return f"a mapping of names to {describe_type(arguments[1])}"
    if is_dataclass(hint):
        return f"{{{', '.join(field.name for field in fields(hint))}}}"
    return _SIMPLE_TYPES[hint]
