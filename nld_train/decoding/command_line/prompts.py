"""Files of prompts: a line of text each, or a JSON object on each line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nld_train.data.records import parse_record, text_under
from nld_train.data.text_files import FileFormat, file_format, open_text
from nld_train.errors import UserError

_KEY = "prompt"


@dataclass(frozen=True)
class Line:
    """A line of a file.

    Attributes:
        where: the file and the number of the line, for messages.
        text: without its line break.
    """

    where: str
    text: str


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: the texts under "prompt" of JSONL, else the lines.

    Raises:
        UserError: as `lines_of`; or a prompt is missing, empty or no text.
    """
    kind, lines = lines_of(path)
    return [_prompt(line, kind) for line in lines]


def lines_of(path: Path) -> tuple[FileFormat, list[Line]]:
    """What a file of prompts holds by its name, and its lines; of JSONL without blank ones.

    A line ends at a line break only: other characters that end lines in Unicode, such as U+2028, may be unescaped in
    JSON.

    Raises:
        UserError: it cannot be read, is neither text nor JSONL, is not UTF-8, or is empty.
    """
    try:
        kind = file_format(str(path))
        if kind == "parquet":
            raise UserError(f"{path}: Parquet is not read here: write the prompts as JSONL or text")
        with open_text(str(path)) as file:
            lines = [_line(path, number, raw) for number, (_, raw) in enumerate(file.lines(), start=1)]
    except UserError as error:
        raise UserError(f"--prompts {error}") from error
    if kind == "jsonl":
        lines = [line for line in lines if line.text.strip()]
    if not lines:
        raise UserError(f"--prompts {path}: holds no prompt")
    return kind, lines


def _line(path: Path, number: int, raw: bytes) -> Line:
    try:
        return Line(f"--prompts {path}:{number}", raw.rstrip(b"\r\n").decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: is not UTF-8 at byte {error.start} of the line") from error


def _prompt(line: Line, kind: FileFormat) -> str:
    text: str | bytes | None = line.text
    if kind == "jsonl":
        record = parse_record(line.text, line.where)
        text = text_under(record, _KEY, line.where, f"each line must be an object with a text under {_KEY!r}")
    if not text:
        raise UserError(f"{line.where}: the prompt is empty")
    assert isinstance(text, str)
    return checked_characters(text, line.where)


def checked_characters(text: str, where: str) -> str:
    """A text of whole characters, which JSON need not be.

    Raises:
        UserError: it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise UserError(f"{where}: holds {half}, half of a surrogate pair and no character") from error
    return text
