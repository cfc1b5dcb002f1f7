"""Questions about drawn pictures: what they show, which thing is where, how many there are, where one is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random
from typing import ClassVar

from nld_train.data.tasks.kind import Turn
from nld_train.data.tasks.scenes import DIGITS, NOTHING, SHAPES, Scene


class PictureKind(ABC):
    """A kind of question about a scene. A new kind is a subclass, and an entry in `PICTURE_KINDS`."""

    name: ClassVar[str]
    # How often it is drawn for training, relative to the other kinds.
    weight: ClassVar[float] = 1.0

    @abstractmethod
    def ask(self, scene: Scene, random: Random) -> Turn | None:
        """A question that has one right answer; None where the scene has none of this kind."""


class Read(PictureKind):
    """`read`: all cells, row by row, such as `7o. .x. ..#`."""

    name = "read"
    weight = 0.4

    def ask(self, scene: Scene, random: Random) -> Turn | None:
        """See `PictureKind.ask`."""
        return Turn("read", _rows(scene, scene.cells))


class Which(PictureKind):
    """`which tc`: `o`, the thing in this cell; `.` is nothing."""

    name = "which"

    def ask(self, scene: Scene, random: Random) -> Turn | None:
        """See `PictureKind.ask`."""
        # As often about an empty cell as about any one thing, of which there are fewer.
        asked = [index for index, thing in enumerate(scene.cells) if thing != NOTHING or random.random() < 0.25]
        number = random.choice(asked)
        return Turn(f"which {scene.positions[number]}", scene.cells[number])


class HowMany(PictureKind):
    """`how many o`: `.o. ... ..o 2`, where they are and their number; also 0."""

    name = "how_many"

    def ask(self, scene: Scene, random: Random) -> Turn | None:
        """See `PictureKind.ask`."""
        shown = sorted({*scene.cells} - {NOTHING})
        thing = random.choice(shown) if random.random() < 0.8 else random.choice((*DIGITS, *SHAPES))
        return Turn(f"how many {thing}", f"{_only(scene, thing)} {scene.cells.count(thing)}")


class Where(PictureKind):
    """`where 7`: `7.. ... ... tl`, it alone and the name of its cell; only of a thing that occurs once."""

    name = "where"

    def ask(self, scene: Scene, random: Random) -> Turn | None:
        """See `PictureKind.ask`."""
        once = sorted(thing for thing in {*scene.cells} - {NOTHING} if scene.cells.count(thing) == 1)
        if not once:
            return None
        thing = random.choice(once)
        return Turn(f"where {thing}", f"{_only(scene, thing)} {scene.positions[scene.cells.index(thing)]}")


def _rows(scene: Scene, cells: Sequence[str]) -> str:
    text, columns = "".join(cells), scene.columns
    return " ".join(text[start : start + columns] for start in range(0, len(text), columns))


def _only(scene: Scene, thing: str) -> str:
    """All cells, those with another thing as if they were empty."""
    return _rows(scene, [cell if cell == thing else NOTHING for cell in scene.cells])


PICTURE_KINDS: dict[str, PictureKind] = {kind.name: kind for kind in (Read(), Which(), HowMany(), Where())}
