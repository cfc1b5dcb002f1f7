"""Encoded pictures as PIL images, within limits against files that are small and become huge or slow when decoded."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from types import FrameType
from typing import TYPE_CHECKING

from nld_train.errors import UserError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats whose decoders are PIL's own libraries: others run programs (EPS) or are hardly ever meant.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


@dataclass(frozen=True)
class PictureLimits:
    """What a picture may cost at most.

    Attributes:
        megabytes: of its encoded bytes, in MiB.
        megapixels: of the decoded picture, in millions.
        seconds: of decoding, by the clock.
        option: the beginning of the command line options that set them, for messages; None where there are none.
    """

    megabytes: float = 32.0
    megapixels: float = 64.0
    seconds: float = 20.0
    option: str | None = None

    def __post_init__(self) -> None:
        if min(self.megabytes, self.megapixels, self.seconds) <= 0:
            raise UserError("the limits of a picture, its megabytes, megapixels and seconds, must be positive")

    def named(self, limit: str) -> str:
        """The option that sets a limit, in parentheses; empty where there is none."""
        return "" if self.option is None else f" ({self.option}{limit})"

    @property
    def file_bytes(self) -> int:
        """Bytes of the encoded picture."""
        return int(self.megabytes * 2**20)

    @property
    def pixels(self) -> int:
        """Pixels of the decoded picture."""
        return int(self.megapixels * 1e6)


def decode_picture(data: bytes, limits: PictureLimits | None, where: object) -> Image:
    """The picture upright and in RGB, as transformers' `load_image` makes it; of several frames the first.

    Args:
        data: the encoded bytes.
        limits: the size is compared before anything is decoded. The time stops the decoder in the main thread, where
            Python handles signals, and is compared afterwards in others. None for a picture that passed them before.
        where: file, row and picture, for messages.

    Raises:
        UserError: it is no picture, is broken, or exceeds a limit.
    """
    from PIL import Image, ImageOps

    if limits is not None:
        refuse_large_file(len(data), limits, where)
    try:
        with warnings.catch_warnings(), nullcontext() if limits is None else _at_most(limits):
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes that are refused here
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                if limits is not None:
                    _refuse_many_pixels(image.size, limits, where)
                return ImageOps.exif_transpose(image).convert("RGB")
    except _TooSlowError as error:
        assert limits is not None
        raise UserError(f"{where}: decoding takes more than {error} s{limits.named('seconds')}") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{where}: is no picture of a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError as error:  # by far more pixels than its own limit: PIL refuses to open it
        raise UserError(f"{where}: {first_line(error)}") from error
    except UserError:
        raise
    except Exception as error:  # decoders raise many kinds of exceptions: of broken data, also SyntaxError
        raise UserError(f"{where}: the picture is broken: {first_line(error)}") from error


def refuse_large_file(size: int, limits: PictureLimits, where: object) -> None:
    """Refuses a file of too many bytes, before it is read where the size is known."""
    if not size:
        raise UserError(f"{where}: the picture is empty")
    if size > limits.file_bytes:
        raise UserError(
            f"{where}: the picture has {size / 2**20:,.1f} MiB, more than {limits.megabytes:g}"
            f"{limits.named('megabytes')}"
        )


def _refuse_many_pixels(size: tuple[int, int], limits: PictureLimits, where: object) -> None:
    width, height = size
    if width * height > limits.pixels:
        raise UserError(
            f"{where}: the picture has {width} x {height} pixels, more than {limits.megapixels:g} million"
            f"{limits.named('megapixels')}"
        )


class _TooSlowError(Exception):
    pass


@contextmanager
def _at_most(limits: PictureLimits) -> Iterator[None]:
    """Raises `_TooSlowError` where the block takes longer than the limit."""
    seconds, begin = limits.seconds, time.monotonic()
    if threading.current_thread() is not threading.main_thread():
        yield
        if time.monotonic() - begin > seconds:
            raise _TooSlowError(f"{seconds:g}")
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _TooSlowError(f"{seconds:g}")

    before = signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        # The timer of a caller goes on.
        signal.setitimer(signal.ITIMER_REAL, left and max(1e-3, left - (time.monotonic() - begin)), interval)
        signal.signal(signal.SIGALRM, before)
