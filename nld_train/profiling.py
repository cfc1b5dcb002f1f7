"""Names for parts of a run in profiles: `with profiled("save"):`. Without a profile it costs a function call.

What a name becomes (a range of torch's profiler, of NVTX) is the affair of who sets it: `training.loop.profile`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

Annotate = Callable[[str], AbstractContextManager[Any]]

_NOTHING = nullcontext()
_annotate: Annotate | None = None


def profiled(name: str) -> AbstractContextManager[Any]:
    """A context that has a name in the profile that is being taken, if one is."""
    return _NOTHING if _annotate is None else _annotate(name)


@contextmanager
def annotating(annotate: Annotate) -> Iterator[None]:
    """Inside the context `profiled` makes its contexts with this function."""
    global _annotate
    before, _annotate = _annotate, annotate
    try:
        yield
    finally:
        _annotate = before
