"""Reads the documents of the tasks beside it; nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image


def load(**_: Any) -> dict[str, datasets.Dataset]:
    lines = Path(__file__).with_name("documents.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def load_pictures(**_: Any) -> dict[str, datasets.Dataset]:
    rows = [{"width": 30, "height": 11}, {"width": 9, "height": 25}]
    return {"test": datasets.Dataset.from_list(rows)}


def images(row: dict[str, int]) -> list[Any]:
    """A picture of random pixels."""
    width, height = row["width"], row["height"]
    return [Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))]
