"""Consoles of `rich` for text from files and models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from nld_train.printable import printable


class _PrintableConsole(Console):
    """A console that shows all text as it is: square brackets are no markup, `:name:` is no emoji, and `printable`
    replaces what could command the terminal."""

    def render_str(self, text: str, **settings: Any) -> Text:
        """See `rich`; the escapes are counted in the widths of columns."""
        return super().render_str(printable(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See `rich`; tables, rules and live displays are rendered here as well."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def plain_console(**settings: Any) -> Console:
    """A console on standard output for the lines and tables of a command.

    Args:
        settings: of `rich.console.Console`.
    """
    return _PrintableConsole(markup=False, emoji=False, highlight=False, **settings)
