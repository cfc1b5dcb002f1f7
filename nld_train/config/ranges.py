"""Refusing numbers outside of the range that their field in `schema` declares."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Lt

from nld_train.config.checks import refuse_unless

UNIONS = (Union, types.UnionType)


def check_ranges(settings: Any, prefix: str = "") -> None:
    """Raise `UserError` for the first number of a dataclass of `schema`, at any depth, that is out of range.

    Args:
        settings: an instance of a dataclass of `schema`.
        prefix: of its keys in messages, including the dot at its end.
    """
    kind: Any = type(settings)
    for name, ranges in _ranges(kind):
        _check(getattr(settings, name), ranges, f"{prefix}{name}")


@dataclass(frozen=True)
class _Ranges:
    """What a field declares.

    Attributes:
        bounds: of its value.
        item_bounds: of each item, where the value is a list.
        optional: whether it may be null.
    """

    bounds: tuple[Any, ...]
    item_bounds: tuple[Any, ...]
    optional: bool


@cache
def _ranges(kind: Any) -> tuple[tuple[str, _Ranges], ...]:
    """Name and ranges of each field of a dataclass, cached: evaluating type hints is slow."""
    return tuple((name, _declared(hint)) for name, hint in get_type_hints(kind, include_extras=True).items())


def _declared(hint: Any) -> _Ranges:
    alternatives = _alternatives(hint)
    is_list = any(get_origin(found) is tuple for found in alternatives)
    items = tuple(constraints(item_hint(hint))) if is_list else ()
    return _Ranges(tuple(constraints(hint)), items, type(None) in alternatives)


def _check(value: Any, ranges: _Ranges, key: str) -> None:
    if is_dataclass(value):
        check_ranges(value, f"{key}.")
    elif isinstance(value, dict):
        for name, item in value.items():
            check_ranges(item, f"{key}.{name}.")
    elif isinstance(value, tuple):
        _check_items(value, ranges, key)
    elif value is not None and not isinstance(value, str):  # a word such as auto instead of a number
        for bound in ranges.bounds:
            if not fits(value, bound):
                optional = ", or null" if ranges.optional else ""
                refuse_unless(False, key, value, f"must {_demand(bound, value)}{optional}")


def _check_items(values: tuple[Any, ...], ranges: _Ranges, key: str) -> None:
    for index, item in enumerate(values):
        if is_dataclass(item):
            check_ranges(item, f"{key}[{index}].")
        for bound in ranges.item_bounds:
            if not fits(item, bound):
                refuse_unless(False, key, list(values), f"each must {_demand(bound, item)}")


def constraints(hint: Any) -> Iterator[Any]:
    """The constraints in `Annotated` around a type or around an alternative of a union."""
    if get_origin(hint) is Annotated:
        base, *metadata = get_args(hint)
        yield from constraints(base)
        yield from (item for item in metadata if not isinstance(item, str))
    elif get_origin(hint) in UNIONS:
        for alternative in get_args(hint):
            yield from constraints(alternative)


def item_hint(hint: Any) -> Any:
    """The type of the items of a list."""
    tuples = (found for found in _alternatives(hint) if get_origin(found) is tuple)
    return get_args(next(tuples))[0]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a hint allows, without what `Annotated` adds around it."""
    if get_origin(hint) is Annotated:
        return _alternatives(get_args(hint)[0])
    return get_args(hint) if get_origin(hint) in UNIONS else (hint,)


def fits(value: Any, bound: Any) -> bool:
    """Whether a number satisfies a constraint."""
    if isinstance(bound, Interval):
        return all(fits(value, part) for part in bound)
    if isinstance(bound, Ge):
        return bool(value >= bound.ge)
    if isinstance(bound, Gt):
        return bool(value > bound.gt)
    return bool(value < bound.lt if isinstance(bound, Lt) else value <= bound.le)


def words(bound: Any) -> str:
    """A constraint in words: `at least 1`, `above 0`, `below 8`, `in [0, 1)`."""
    if isinstance(bound, Interval):
        low = f"({bound.gt}" if bound.ge is None else f"[{bound.ge}"
        high = f"{bound.lt})" if bound.le is None else f"{bound.le}]"
        return f"in {low}, {high}"
    if isinstance(bound, Ge):
        return f"at least {bound.ge}"
    if isinstance(bound, Gt):
        return f"above {bound.gt}"
    if isinstance(bound, Lt):
        return f"below {_power_of_two(bound.lt)}"
    raise TypeError(f"{bound!r}: no constraint that the configuration uses")


def _demand(bound: Any, value: float) -> str:
    """A constraint in the words that follow "must" in a message."""
    number = "a number " if isinstance(bound, Gt) and isinstance(value, float) else ""
    return f"{'lie' if isinstance(bound, Interval) else 'be'} {number}{words(bound)}"


def _power_of_two(number: Any) -> str:
    exponent = int(number).bit_length() - 1
    return f"2**{exponent} = {number}" if number == 2**exponent else str(number)
