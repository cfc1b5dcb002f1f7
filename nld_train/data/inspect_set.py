"""`nld-data inspect`: the content of a set, a sample with its document borders and masks, or a conversation."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from nld_train.config.schema import DiffusionConfig
from nld_train.console import plain_console
from nld_train.data.chat.inspect_conversation import show_conversation
from nld_train.data.conversation_lengths import mean_noisy_ratio
from nld_train.data.endings import fill_share
from nld_train.data.manifest import ChatManifest, Manifest, read_manifest
from nld_train.data.packed import PackedSamples
from nld_train.data.shown_tokens import TokenText, token_text
from nld_train.data.token_index import check_files, document_spans
from nld_train.data.tokenizer_files import CHAT_TEMPLATE
from nld_train.errors import UserError
from nld_train.masking.answer_blocks import BlockOrigin
from nld_train.progress import Advance, progress_bar

if TYPE_CHECKING:
    from nld_train.data.samples import SampleSettings

_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_TEXT_BLOCK_SIZE, _CHAT_BLOCK_SIZE = 64, 32


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
        conversation: conversation in file order, or None.
        blocks: where the blocks of conversations are counted from.
        pictures_folder: where the pictures of the conversation are saved, or None.
    """

    prefix: str
    sample: int | None
    sequence_length: int
    block_size: int | None
    level: float | None
    seed: int
    tokenizer: str | None
    conversation: int | None = None
    blocks: BlockOrigin = "answer"
    pictures_folder: str | None = None

    def size_of_blocks(self, chat: bool) -> int:
        """Tokens per block: by default those of fine-tuning, or of pretraining."""
        return self.block_size or (_CHAT_BLOCK_SIZE if chat else _TEXT_BLOCK_SIZE)


def inspect_set(request: InspectRequest, console: Console | None = None) -> None:
    """Prints the content of a set, or a sample where the request has one.

    Raises:
        UserError: the set cannot be read, there is no such sample, or a setting is out of range.
    """
    console = console or plain_console()
    _check(request)
    manifest = read_manifest(request.prefix)
    chat = None if manifest is None else manifest.chat
    if request.sample is None and request.conversation is None:
        _show_set(request, manifest, console)
        return
    shown = token_text(request.prefix, manifest, request.tokenizer, console.color_system is None)
    if request.conversation is None and request.sample is not None:
        if chat is not None:
            raise UserError(f"--sample: {request.prefix} is a set of conversations: give --conversation N")
        _show_sample(request, request.sample, shown, console)
    elif request.conversation is not None:
        if chat is None or request.sample is not None:
            reason = (
                "give it or --sample" if chat is not None else f"{request.prefix} is a set of texts: give --sample N"
            )
            raise UserError(f"--conversation: {reason}")
        settings = _sample_settings(request, chat=True)
        show_conversation(request.prefix, request.conversation, settings, shown, console, request.pictures_folder)


def _check(request: InspectRequest) -> None:
    if request.sequence_length < 1 or (request.block_size is not None and request.block_size < 1):
        raise UserError("--sequence-length and --block-size must be at least 1")
    if request.pictures_folder is not None and request.conversation is None:
        raise UserError("--save-pictures: say with --conversation N whose pictures are saved")
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
    if manifest is not None and manifest.chat is not None:
        _add_chat(table, request, manifest.tokens, manifest.chat)
        if (pictures := manifest.pictures) is not None:
            table.add_row(
                "pictures", f"{pictures.pictures:,} with {pictures.occurrences:,} occurrences, {pictures.bytes:,} bytes"
            )
            table.add_row("picture processor", json.dumps(pictures.processor))
    elif lengths.tokens > request.sequence_length:
        size = request.size_of_blocks(chat=False)
        share = fill_share(prefix, request.sequence_length, size)
        setting = f"samples of {request.sequence_length:,} tokens, blocks of {size}"
        table.add_row("fill after documents", f"{share:.1%} of the noisy stream ({setting}, documents=isolate)")
    for name, value in (asdict(manifest) if manifest else {"manifest": "none (made by other tools)"}).items():
        if name not in ("documents", "tokens", "dtype", "chat", "pictures"):
            table.add_row(name, value if isinstance(value, str) else json.dumps(value))
    console.print(table)


def _add_chat(table: Table, request: InspectRequest, tokens: int, chat: ChatManifest) -> None:
    size = request.size_of_blocks(chat=True)
    ratio = mean_noisy_ratio(request.prefix, size, request.blocks, fill=True)
    learned = {"all": "all", "last": "the last one of each", "each": "each in a document of its own"}
    mean = chat.answer_tokens / max(chat.answer_count, 1)
    table.add_row("conversations", f"{chat.conversations:,}, the longest of {chat.longest:,} tokens")
    table.add_row("answers", f"{chat.answer_count:,} ({learned.get(chat.answers, chat.answers)}), {mean:,.1f} tokens")
    table.add_row("tokens of answers", f"{chat.answer_tokens:,} ({chat.answer_tokens / tokens:.1%})")
    table.add_row("noisy stream", f"{ratio:.2f} per token (blocks of {size} from each {request.blocks}, with fill)")
    if chat.left_out:
        table.add_row("left out", f"{chat.left_out:,} rows without an answer that is learned")
    if chat.bad_rows:
        table.add_row("bad rows", f"{chat.bad_rows:,}, left out")
    table.add_row("chat template", f"{request.prefix}.{CHAT_TEMPLATE} ({chat.template_hash[:12]})")


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


def _show_sample(request: InspectRequest, sample: int, shown_text: TokenText, console: Console) -> None:
    from nld_train.data.samples import draw_noisy_stream
    from nld_train.masking.noisy_stream import FILL

    samples = PackedSamples(request.prefix, request.sequence_length)
    if not 0 <= sample < len(samples):
        raise UserError(f"--sample {sample}: {request.prefix} holds samples 0 to {len(samples) - 1} of this length")
    packed = samples.read(sample)
    stream, noise = draw_noisy_stream(_sample_settings(request, chat=False), sample, packed)
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
        console.print(shown_text.of(tokens[rows], shown[rows]), soft_wrap=True)


def _sample_settings(request: InspectRequest, chat: bool) -> SampleSettings:
    """As in training; only the noise of the samples is used, which depends on no token id."""
    from nld_train.data.samples import SampleSettings

    return SampleSettings(
        stage="inspect",
        seed=request.seed,
        noisy_length=request.sequence_length,
        documents="isolate",
        diffusion=DiffusionConfig(
            request.size_of_blocks(chat),
            epsilon=1e-3,
            levels="independent",
            level_scope="sequence",
            blocks=request.blocks,
        ),
        global_size=1,
        vocab_size=0,
        mask_token_id=-1,
        eos_token_id=-1,
        level=request.level,
    )
