"""`nld-data inspect`: the content of a set, or one training sample with its document borders and masks."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nld_train.config.schema import DiffusionConfig
from nld_train.console import plain_console
from nld_train.data.endings import fill_share
from nld_train.data.manifest import Manifest, read_manifest, require_tokenizer
from nld_train.data.packed import PackedSamples
from nld_train.data.token_index import check_files, document_spans
from nld_train.data.tokenizer import load_tokenizer
from nld_train.errors import UserError
from nld_train.progress import Advance, progress_bar

if TYPE_CHECKING:
    from nld_train.data.samples import SampleSettings

_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_MASKED = "bold white on red"


@dataclass(frozen=True)
class InspectRequest:
    """The set, or the sample under noise, that is shown.

    Attributes:
        prefix: path of the set without suffix.
        sample: sample in file order, or None.
        sequence_length: tokens of a sample.
        block_size: tokens per block.
        level: noise level in [0, 1], or None to draw one.
        seed: seed of the noise.
        tokenizer: directory, or None for the one that the manifest names.
    """

    prefix: str
    sample: int | None
    sequence_length: int
    block_size: int
    level: float | None
    seed: int
    tokenizer: str | None


def inspect_set(request: InspectRequest, console: Console | None = None) -> None:
    """Prints the content of a set, or a sample where the request has one.

    Raises:
        UserError: the set cannot be read, there is no such sample, or a setting is out of range.
    """
    console = console or plain_console()
    _check(request)
    manifest = read_manifest(request.prefix)
    if request.sample is None:
        _show_set(request, manifest, console)
    else:
        _show_sample(request, request.sample, _decoder(request, manifest), console)


def _check(request: InspectRequest) -> None:
    if request.sequence_length < 1 or request.block_size < 1:
        raise UserError("--sequence-length and --block-size must be at least 1")
    if request.level is not None and not 0 <= request.level <= 1:
        raise UserError(f"--level {request.level} must lie in [0, 1]")


def _show_set(request: InspectRequest, manifest: Manifest | None, console: Console) -> None:
    prefix = request.prefix
    header = check_files(prefix)
    with progress_bar("documents", header.documents) as advance:
        lengths = _LengthHistogram(prefix, advance)
    table = Table(title=prefix, show_header=False, title_justify="left")
    table.add_row("documents", f"{header.documents:,}")
    table.add_row("tokens", f"{lengths.tokens:,}")
    table.add_row("token type", np.dtype(header.dtype).name)
    quantiles = ", ".join(f"{fraction:.0%} {lengths.quantile(fraction):,.0f}" for fraction in _QUANTILES)
    table.add_row("document lengths", quantiles)
    if lengths.tokens > request.sequence_length:
        share = fill_share(prefix, request.sequence_length, request.block_size)
        setting = f"samples of {request.sequence_length:,} tokens, blocks of {request.block_size}"
        table.add_row("fill after documents", f"{share:.1%} of the noisy stream ({setting}, documents=isolate)")
    for name, value in (asdict(manifest) if manifest else {"manifest": "none (made by other tools)"}).items():
        if name not in ("documents", "tokens", "dtype"):
            table.add_row(name, value if isinstance(value, str) else json.dumps(value))
    console.print(table)


class _LengthHistogram:
    """How many documents of a set have each length. T tokens have at most sqrt(2 T) different lengths.

    Raises:
        UserError: the `.idx` is damaged.
    """

    def __init__(self, prefix: str, advance: Advance) -> None:
        values, counts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        for _, lengths in document_spans(prefix, advance):
            found = np.unique(lengths, return_counts=True)
            values, inverse = np.unique(np.concatenate([values, found[0]]), return_inverse=True)
            sums = np.zeros(len(values), dtype=np.int64)
            np.add.at(sums, inverse, np.concatenate([counts, found[1]]))
            counts = sums
        self._lengths, self._documents = values, np.cumsum(counts)
        self.tokens = int(values @ counts)

    def quantile(self, fraction: float) -> float:
        """As `np.quantile` of all lengths, which interpolates linearly."""
        rank = fraction * (int(self._documents[-1]) - 1)
        below, above = (self._at(round_to(rank)) for round_to in (math.floor, math.ceil))
        return below + (above - below) * (rank - math.floor(rank))

    def _at(self, rank: int) -> int:
        """The length of this rank, from 0."""
        return int(self._lengths[np.searchsorted(self._documents, rank, side="right")])


def _show_sample(request: InspectRequest, sample: int, decoder: _Decoder, console: Console) -> None:
    from nld_train.data.samples import draw_noisy_stream
    from nld_train.masking.noisy_stream import FILL

    samples = PackedSamples(request.prefix, request.sequence_length)
    if not 0 <= sample < len(samples):
        raise UserError(f"--sample {sample}: {request.prefix} holds samples 0 to {len(samples) - 1} of this length")
    packed = samples.read(sample)
    stream, noise = draw_noisy_stream(_sample_settings(request), sample, packed)
    real, tokens, documents = stream.sources >= 0, packed.tokens[:-1], packed.documents[:-1]
    shown = np.zeros(len(tokens), dtype=bool)
    shown[stream.sources[real]] = noise.masked[real]
    fill = stream.sources == FILL
    console.print(
        f"sample {sample} of {len(samples):,}: {len(tokens)} tokens, {documents[-1] + 1} documents; noisy stream: "
        f"{real.sum()} of the tokens and {fill.sum()} end tokens as fill after documents; {shown.sum()} tokens and "
        f"{(fill & noise.masked).sum()} of the fill masked (masking probability {noise.probability[0]:.3f})",
        soft_wrap=True,
    )
    for document in range(documents[-1] + 1):
        rows = documents == document
        console.rule(f"document {document}: {rows.sum()} tokens", style="cyan", align="left")
        console.print(_render(tokens[rows], shown[rows], decoder, console.color_system is None), soft_wrap=True)


def _sample_settings(request: InspectRequest) -> SampleSettings:
    """As in training; only the noise of the samples is used, which depends on no token id."""
    from nld_train.data.samples import SampleSettings

    return SampleSettings(
        stage="inspect",
        seed=request.seed,
        noisy_length=request.sequence_length,
        documents="isolate",
        diffusion=DiffusionConfig(request.block_size, epsilon=1e-3, levels="independent", level_scope="sequence"),
        global_size=1,
        vocab_size=0,
        mask_token_id=-1,
        eos_token_id=-1,
        level=request.level,
    )


def _render(tokens: NDArray[np.int64], masked: NDArray[np.bool_], decoder: _Decoder, plain: bool) -> Text:
    """One document; masked runs on a red background, or in brackets without colours."""
    text = Text()
    borders = [0, *(np.flatnonzero(np.diff(masked)) + 1), len(tokens)]
    for begin, end in pairwise(borders):
        run = decoder.decode(tokens[begin:end].tolist())
        if not masked[begin]:
            text.append(run)
        else:
            text.append(f"⟦{run}⟧" if plain else run, style=_MASKED)
    return text


class _Decoder:
    """Token ids as readable text; as numbers where no tokenizer is known."""

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: list[int]) -> str:
        """Text of a run of tokens."""
        if self._tokenizer is None:
            return " ".join(map(str, ids)) + " "
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


def _decoder(request: InspectRequest, manifest: Manifest | None) -> _Decoder:
    directory = request.tokenizer
    if manifest is not None:
        directory = directory or manifest.tokenizer_directory(request.prefix)
        if request.tokenizer is None and not os.path.isdir(directory):
            return _Decoder(None)
        require_tokenizer(request.prefix, manifest, directory, "--tokenizer")
    return _Decoder(None if directory is None else load_tokenizer(directory))
