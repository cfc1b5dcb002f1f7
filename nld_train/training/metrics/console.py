"""What a run says of itself on the terminal: a line per step, and what was measured between steps."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from rich.console import Console

from nld_train.training.metrics.jsonl import Record

# Characters of a decoded text.
_TEXT_SHOWN = 60


class ConsoleLog:
    """One line per step on rank 0's terminal."""

    def __init__(self, total_steps: int, every: int) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.total_steps = total_steps
        self.every = every

    def write(self, record: Record) -> None:
        """Prints a step if its turn has come, and what was measured after it whenever there was something."""
        if record["step"] % self.every == 0 or record["step"] == self.total_steps:
            self.console.print(step_line(record, self.total_steps), markup=False)
        if "validation" in record:
            self.console.print(validation_line(record["validation"]), style="cyan", markup=False)
        for line in decoding_lines(record["decoding"]) if "decoding" in record else ():
            self.console.print(line, style="cyan", markup=False)

    def say(self, text: str) -> None:
        """Prints a line that belongs to no step."""
        self.console.print(text, markup=False)


def step_line(record: Record, total_steps: int) -> str:
    """Stage, step, tokens, loss, raw terms or accepted length, gradient norm, learning rate, speed, time left."""
    parts = [
        f"{record['stage']:<6} step {record['step']:>{len(str(total_steps))}}/{total_steps}",
        f"tokens {human(record['tokens'])}",
        f"loss {record['loss']:.4f}",
    ]
    for name, loss in (("ar", "ar_loss"), ("diffusion", "diffusion_loss")):
        if record[loss] is not None:
            parts.append(f"{name} {record[loss]:.4f}")
    if "drafter" in record:
        parts.append(f"accepted length {record['drafter']['accepted_length']:.3f}")
    parts += [
        f"grad {record['grad_norm']:.3f}",
        f"lr {record['learning_rate']:.2e}",
        f"{human(record['tokens_per_second'])} tok/s",
    ]
    if record["mfu"] is not None:
        parts.append(f"mfu {record['mfu']:.1%}")
    return "  ".join([*parts, f"left {timedelta(seconds=round(record['seconds_left']))}"])


def validation_line(validation: Record) -> str:
    """Held-out losses, AR and diffusion by noise level, and what share of the time they take."""
    levels = "  ".join(f"t={level} {loss:.4f}" for level, loss in validation["diffusion_loss"].items())
    losses = f"ar {validation['ar_loss']:.4f}" + (f"  diffusion {levels}" if levels else "")
    return f"       validation  {losses}  {_time(validation, 'validation')}"


def _time(measured: Record, name: str) -> str:
    return f"({measured['seconds']:.1f} s, {name} is {measured['share']:.1%} of the time so far)"


def decoding_lines(decoding: Record) -> list[str]:
    """A line per mode, one of how far they agree with each other, and the beginning of each different text.

    The first line says what share of the time decoding takes.
    """
    modes = decoding["modes"]
    width = max(len(mode) for mode in modes)
    lines = [f"       {mode:<{width}}  {_figures(figures)}" for mode, figures in modes.items()]
    lines[0] += f"  {_time(decoding, 'decoding')}"
    pairs = [f"{pair} {share:.0%}" for pair, share in decoding["agreements"].items() if "ar" not in pair.split("/")]
    if pairs:
        lines.append(f"       agreement  {'  '.join(pairs)}")
    return lines + [f"       {line}" for line in _texts(decoding["samples"])]


def _figures(figures: Record) -> str:
    """What a mode came to; how often its drafts were accepted, at a few positions only."""
    parts = [
        f"{figures['tokens_per_forward']:.2f} tokens/forward",
        f"{human(figures['tokens_per_second'])} tok/s",
        f"agreement with ar {figures['agreement']:.0%}",
    ]
    if shares := figures.get("acceptance"):
        parts.append(f"accepted length {figures['accepted_per_cycle']:.2f}")
        shown = [position for position in shares if _is_shown(int(position), len(shares))]
        parts.append("by position " + " ".join(f"{position}:{shares[position]:.0%}" for position in shown))
    return "  ".join(parts)


def _is_shown(position: int, last: int) -> bool:
    """1, 2, 4, 8 and so on, and the last: acceptance falls fast at first and slowly later."""
    return position == last or position & (position - 1) == 0


def _texts(samples: list[dict[str, str]]) -> Iterator[str]:
    """The beginning of what each mode makes of the first prompt; modes with one text share a line."""
    if not samples:
        return
    by_text: dict[str, list[str]] = {}
    for mode, text in samples[0].items():
        if mode != "prompt":
            by_text.setdefault(text, []).append(mode)
    for text, modes in by_text.items():
        cut = text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]}..."
        # Quoted, so that line breaks and control characters stay what they are.
        yield f"{', '.join(modes)}: {cut!r}"


def human(number: float) -> str:
    """A count in three digits: 1.05M."""
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"
