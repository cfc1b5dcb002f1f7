"""Questions about drawn pictures: which thing is where, how many there are, where one is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from random import Random
from typing import ClassVar

from nld_train.data.tasks.kind import Turn
from nld_train.data.tasks.scenes import DIGITS, SHAPES, Scene


class PictureKind(ABC):
    """A kind of question about a scene. A new kind is a subclass, and an entry in `PICTURE_KINDS`."""

    name: ClassVar[str]

    @abstractmethod
    def ask(self, scene: Scene, random: Random) -> Turn | None:
        """A question that has one right answer; None where the scene has none of this kind."""


class Which(PictureKind):
    """`which top left`: `7`, or `nothing`."""

    name = "which"

    def ask(self, scene: Scene, random: Random) -> Turn | None:
        """See `PictureKind.ask`."""
        # As often about an empty cell as about any one thing, of which there are fewer.
        asked = [index for index, thing in enumerate(scene.cells) if thing or random.random() < 0.25]
        number = random.choice(asked)
        return Turn(f"which {scene.positions[number]}", scene.cells[number] or "nothing")


class HowMany(PictureKind):
    """`how many disc`: `2`; also 0."""

    name = "how_many"

    def ask(self, scene: Scene, random: Random) -> Turn | None:
        """See `PictureKind.ask`."""
        shown = sorted({thing for thing in scene.cells if thing})
        thing = random.choice(shown) if random.random() < 0.8 else random.choice((*DIGITS, *SHAPES))
        return Turn(f"how many {thing}", str(scene.cells.count(thing)))


class Where(PictureKind):
    """`where 7`: `top left`; only of a thing that occurs once."""

    name = "where"

    def ask(self, scene: Scene, random: Random) -> Turn | None:
        """See `PictureKind.ask`."""
        once = sorted({thing for thing in scene.cells if thing and scene.cells.count(thing) == 1})
        if not once:
            return None
        thing = random.choice(once)
        return Turn(f"where {thing}", scene.positions[scene.cells.index(thing)])


PICTURE_KINDS: dict[str, PictureKind] = {kind.name: kind for kind in (Which(), HowMany(), Where())}
