"""Checks that validation uses. Each raises a one-line `UserError` with a key, its value and what would be valid."""

from __future__ import annotations

from typing import Any

from nld_train.errors import UserError


def refuse_unless(fits: bool, key: str, value: Any, valid: str) -> None:
    """Raise `UserError` as `key=value: valid` unless `fits`."""
    if not fits:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
        raise UserError(f"{key}={shown}: {valid}")


def at_least(key: str, value: float, minimum: float) -> None:
    """Refuse a number below `minimum`."""
    refuse_unless(value >= minimum, key, value, f"must be at least {minimum}")


def positive(key: str, value: float | None) -> None:
    """Refuse null, zero and negative numbers."""
    refuse_unless(value is not None and value > 0, key, value, "must be a number above 0")


def divisors(number: int, smallest: int = 1, most: int = 12) -> list[int]:
    """The first `most` divisors of `number` from `smallest` on."""
    return [candidate for candidate in range(smallest, min(number, 4096) + 1) if number % candidate == 0][:most]


def divides(divisor_key: str, divisor: int, key: str, value: int, valid: list[int] | None = None) -> None:
    """Refuse a number that does not divide `value`; the message lists `valid` (default: the divisors of `value`)."""
    choices = ", ".join(str(number) for number in (divisors(value) if valid is None else valid))
    refuse_unless(value % divisor == 0, divisor_key, divisor, f"must divide {key}={value}; valid: {choices or 'none'}")
