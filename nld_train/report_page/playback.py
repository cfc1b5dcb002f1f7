"""What a decoding did, forward by forward, in a form that the page plays back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nld_train.decoding.algorithms.options import Mode
from nld_train.decoding.algorithms.outputs import Progress, per_forward
from nld_train.decoding.command_line.terminal import Decode, pieces

# Tokens before a text that are decoded with it: the text of a token can depend on them.
_CONTEXT = 4

Frame = dict[str, Any]


@dataclass
class Recorder:
    """An observer that keeps every state of every sequence."""

    states: dict[int, list[Progress]] = field(default_factory=dict)

    def __call__(self, progress: Progress) -> None:
        """See `outputs.Observer`. Of several states after one forward the last one counts."""
        states = self.states.setdefault(progress.sequence, [])
        if states and states[-1].forwards == progress.forwards:
            states.pop()
        states.append(progress)


def playback(mode: Mode, states: Sequence[Progress], decode: Decode) -> Frame:
    """One decoded sequence for the page.

    Args:
        mode: of the decoder.
        states: of the sequence, from the prefill to its end (`Recorder`).
        decode: text of some ids.

    Returns:
        `pieces`, `passes` and `drafted` of every new token: its text, the forward that committed it, and whether it was
        a draft (or denoised). `frames`, each the state after a forward: `forwards` so far and what the last one did
        (`what`); how many tokens were `committed`; the open `block` of diffusion, null where masked, with `passes` and
        `drafted`; the `drafts` that the next forward verifies; and those that this one `rejected`. Then the sums.
    """
    ended = states[-1]
    new = len(ended.tokens)
    cycles = [state for state in states if state.drafts]
    frames: list[Frame] = []
    for state in states:
        if state.drafts:
            _show_drafts(frames, state, decode)
        frames.append(_frame(mode, state, decode))
    return {
        "pieces": pieces(decode, ended.tokens),
        "passes": list(ended.committed_by),
        "drafted": list(ended.drafted),
        "frames": frames,
        "forwards": ended.forwards,
        "tokens": new,
        "tokensPerForward": per_forward(new, ended.forwards),
        "draftsVerified": sum(len(state.drafts) for state in cycles),
        "draftsAccepted": sum(len(state.drafts) - len(state.rejected) for state in cycles),
        "finish": ended.finish,
    }


def _frame(mode: Mode, state: Progress, decode: Decode) -> Frame:
    count = len(state.tokens)
    return {
        "forwards": state.forwards,
        "what": _what(mode, state),
        "committed": count,
        "block": _block(state, decode),
        "passes": list(state.committed_by[count:]),
        "drafted": list(state.drafted[count:]),
        "drafts": [],
        "rejected": _after(decode, state.tokens, state.rejected),
        "finished": state.finish is not None,
    }


def _what(mode: Mode, state: Progress) -> str:
    if state.forwards == 0:
        return "prefill"
    if mode != "diffusion":
        return {"ar": "predict", "linear": "verify", "quadratic": "verify and draft"}[mode]
    # The forward that appends a block to the cache predicts the first token of the next one, and nothing else.
    last = zip(state.committed_by, state.drafted, strict=True)
    predicted = any(number == state.forwards and not drafted for number, drafted in last)
    return "append the block" if predicted else "denoise"


def _show_drafts(frames: list[Frame], state: Progress, decode: Decode) -> None:
    """Shows the drafts that led to a state after the forward that made them.

    In quadratic self-speculation that is the forward before, which has also verified; in linear, a forward that did
    nothing else, and that observers are not told of.
    """
    before = frames[-1]
    if before["forwards"] < state.forwards - 1:
        before = {**before, "forwards": state.forwards - 1, "what": "draft", "rejected": []}
        frames.append(before)
    accepted = len(state.drafts) - len(state.rejected)
    committed = state.tokens[: before["committed"]]
    before["drafts"] = _after(decode, committed, state.drafts)
    before["acceptedNext"] = accepted


def _block(state: Progress, decode: Decode) -> list[str | None]:
    """The text of each token of the open block, None where it is masked; a run of tokens is decoded together."""
    texts: list[str | None] = []
    run: list[int] = []
    before: Sequence[int] = state.tokens
    for token in (*state.block, None):
        if token is not None:
            run.append(token)
            continue
        texts += _after(decode, before, run)
        texts.append(None)
        run, before = [], ()
    return texts[:-1]


def _after(decode: Decode, before: Sequence[int], token_ids: Sequence[int]) -> list[str]:
    """The text that each of some ids adds after others."""
    if not token_ids:
        return []
    context = list(before[-_CONTEXT:])
    return pieces(decode, [*context, *token_ids])[len(context) :]
