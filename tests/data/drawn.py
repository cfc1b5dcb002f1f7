"""Small pictures, and conversations about them, for the tests."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROCESSOR = '{"patch_size": 7, "spatial_merge_size": 2, "size": {"longest_edge": 56}}'
IMG, BREAK, END = 260, 261, 262


def encoded(width: int, height: int, seed: int = 0, kind: str = "PNG") -> bytes:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def asked(*parts: Any, answer: str = "yes") -> list[dict[str, Any]]:
    """A question of parts, texts or URLs of pictures in tuples, and its answer."""
    content = [
        {"type": "image_url", "image_url": {"url": part[0]}}
        if isinstance(part, tuple)
        else {"type": "text", "text": part}
        for part in parts
    ]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
