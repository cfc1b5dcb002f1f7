"""Pictures that are drawn: a grid of cells, in each a digit of seven segments, a shape, or nothing.

No two of these look alike, so that a question about a scene has one right answer. Which scene a picture shows is all
that matters: colours, and where in its cell a thing stands, vary.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

DIGITS = tuple("0123456789")
# Square, cross, disc and corner, as texts name them. All names have one letter, so that where something stands in a
# question does not depend on what is asked.
SHAPES = ("#", "x", "o", "L")
NOTHING = "."
# Pixels of a cell: one image token with patches of 7 x 7 and a merge of 2 x 2.
CELL = 14
# How many cells are not empty, by difficulty.
THINGS = {1: range(3, 6), 2: range(4, 8), 3: range(5, 10)}
# Top, middle, bottom; left, centre, right.
_ROWS, _COLUMNS = "tmb", "lcr"
# Segments of the digits: top, upper left, upper right, middle, lower left, lower right, bottom.
_SEGMENTS = (
    "1110111",
    "0010010",
    "1011101",
    "1011011",
    "0111010",
    "1101011",
    "1101111",
    "1010010",
    "1111111",
    "1111011",
)
# Of each segment both ends in a box of 5 x 8 pixels.
_LINES = (
    *((0, 0, 5, 0), (0, 0, 0, 4), (5, 0, 5, 4), (0, 4, 5, 4)),
    *((0, 4, 0, 8), (5, 4, 5, 8), (0, 8, 5, 8)),
)


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        rows: of the grid.
        columns: of the grid.
        cells: a digit, a shape, or `NOTHING`, row by row.
    """

    rows: int
    columns: int
    cells: tuple[str, ...]

    @property
    def key(self) -> str:
        """Equal for equal scenes."""
        return f"{self.rows} {self.columns} {''.join(self.cells)}"

    @property
    def positions(self) -> tuple[str, ...]:
        """The name of each cell, such as `tl` at the top left."""
        return tuple(f"{row}{column}" for row in _ROWS[: self.rows] for column in _COLUMNS[: self.columns])

    def blank(self) -> Scene:
        """A scene of the same size that shows nothing."""
        return Scene(self.rows, self.columns, (NOTHING,) * len(self.cells))


def random_scene(random: Random, difficulty: int) -> Scene:
    """A scene of three rows and columns; things may occur more than once in it."""
    rows, columns = len(_ROWS), len(_COLUMNS)
    kinds = random.sample((*DIGITS, *SHAPES), k=4)
    things = random.choices(kinds, k=random.choice(THINGS[difficulty]))
    cells = things + [NOTHING] * (rows * columns - len(things))
    random.shuffle(cells)
    return Scene(rows, columns, tuple(cells))


def draw(scene: Scene, random: Random) -> bytes:
    """A picture of a scene as PNG, of `CELL` pixels for each cell."""
    from PIL import Image, ImageDraw

    background = tuple(random.randrange(40) for _ in range(3))
    image = Image.new("RGB", (scene.columns * CELL, scene.rows * CELL), background)
    canvas = ImageDraw.Draw(image)
    for number, thing in enumerate(scene.cells):
        row, column = divmod(number, scene.columns)
        colour = (random.randrange(160, 256), random.randrange(160, 256), random.randrange(160, 256))
        left, top = column * CELL + random.randrange(3, 6), row * CELL + random.randrange(2, 5)
        if thing in DIGITS:
            _draw_digit(canvas, int(thing), left, top, colour)
        elif thing in SHAPES:
            _draw_shape(canvas, thing, left - 1, top, colour)
    stream = BytesIO()
    image.save(stream, "PNG", optimize=False)
    return stream.getvalue()


def _draw_digit(canvas: ImageDraw, digit: int, left: int, top: int, colour: tuple[int, int, int]) -> None:
    for lit, (x, y, to_x, to_y) in zip(_SEGMENTS[digit], _LINES, strict=True):
        if lit == "1":
            canvas.line((left + x, top + y, left + to_x, top + to_y), fill=colour)


def _draw_shape(canvas: ImageDraw, shape: str, left: int, top: int, colour: tuple[int, int, int]) -> None:
    right, bottom = left + 7, top + 7
    if shape == "#":
        canvas.rectangle((left, top, right, bottom), fill=colour)
    elif shape == "o":
        canvas.ellipse((left, top, right, bottom), fill=colour)
    elif shape == "L":
        canvas.polygon(((left, top), (left, bottom), (right, bottom)), fill=colour)
    else:
        canvas.line((left, top, right, bottom), fill=colour)
        canvas.line((left, bottom, right, top), fill=colour)


def data_url(picture: bytes) -> str:
    """A PNG as the URL of a message."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
