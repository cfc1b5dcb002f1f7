"""The oracle bound straight from docs/method.md, "Oracle bound": one sequence, every forward over the whole text by the
stock model, and every set simulated anew to the end of its block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from naive_decoding import Reader, cut

# Tokens of a block, and which of them are masked.
State = tuple[list[int], list[bool]]
Step = Callable[[list[int], list[float], list[bool]], list[int]]


@dataclass
class NaiveBound:
    """New tokens, positions committed by each pass, and the positions of every pass with the largest safe number."""

    tokens: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    forwards: int = 0
    searched: list[tuple[int, int]] = field(default_factory=list)


class Block:
    """A block of `size` tokens after a text.

    Args:
        reader: the model.
        text: before the block.
        seed: whether its first token is the AR prediction.
        size: tokens.
        safety: `greedy` or `one-per-pass`.
    """

    def __init__(self, reader: Reader, text: list[int], size: int, seed: bool, safety: str) -> None:
        self.reader, self.text, self.size = reader, text, size
        first = [reader.next_token(text)] if seed else []
        self.start: State = (
            first + [reader.mask] * (size - len(first)),
            [False] * len(first) + [True] * (size - len(first)),
        )
        self.target = self.finish(self.start, top_one)
        self.safety: Step = self.matching if safety == "greedy" else top_one

    def predict(self, state: State) -> tuple[list[int], list[float]]:
        logits = self.reader.logits(self.text + state[0], block=self.size)[-self.size :]
        return logits.argmax(-1).tolist(), logits.softmax(-1).max(-1).values.tolist()

    def commit(self, state: State, positions: list[int], predictions: list[int]) -> State:
        tokens = [predictions[i] if i in positions else token for i, token in enumerate(state[0])]
        return tokens, [hidden and i not in positions for i, hidden in enumerate(state[1])]

    def finish(self, state: State, step: Step) -> list[int]:
        while any(state[1]):
            predictions, confidence = self.predict(state)
            state = self.commit(state, step(predictions, confidence, state[1]), predictions)
        return state[0]

    def matching(self, predictions: list[int], confidence: list[float], masked: list[bool]) -> list[int]:
        """Greedy acceptance: every matching position, else the most confident one."""
        found = [i for i, hidden in enumerate(masked) if hidden and predictions[i] == self.target[i]]
        return found or top_one(predictions, confidence, masked)

    def oracle(
        self, predictions: list[int], confidence: list[float], masked: list[bool], state: State
    ) -> tuple[list[int], int]:
        """The positions that the oracle commits, and the largest safe number of them by trying every number."""
        found = [i for i, hidden in enumerate(masked) if hidden and predictions[i] == self.target[i]]
        if not found:
            return top_one(predictions, confidence, masked), 1
        ordered = sorted(found, key=lambda i: (-confidence[i], i))

        def safe(number: int) -> bool:
            after = self.commit(state, ordered[:number], predictions)
            return number == 1 or self.finish(after, self.safety) == self.target

        least, most = 1, len(ordered)
        middle = most
        while least < most:
            least, most = (middle, most) if safe(middle) else (least, middle - 1)
            middle = (least + most + 1) // 2
        return ordered[:least], max(number for number in range(1, len(ordered) + 1) if safe(number))


def top_one(predictions: list[int], confidence: list[float], masked: list[bool]) -> list[int]:
    """The most confident masked position."""
    return [max((i for i, hidden in enumerate(masked) if hidden), key=lambda i: confidence[i])]


def bound(
    reader: Reader,
    prompt: list[int],
    limit: int,
    length: int,
    policy: str,
    seed: bool,
    safety: str = "greedy",
    stops: tuple[int, ...] = (),
) -> NaiveBound:
    """Decodes with `oracle`, `greedy` or `one`."""
    found = NaiveBound()
    while True:
        block = Block(reader, prompt + found.tokens, min(length, limit - len(found.tokens)), seed, safety)
        state = block.start
        while True:
            certain = state[1].index(True) if any(state[1]) else block.size
            done, over = cut(found.tokens + state[0][:certain], limit, stops)
            if over:
                found.tokens = done
                return found
            if not any(state[1]):
                break
            predictions, confidence = block.predict(state)
            found.forwards += 1
            if policy == "oracle":
                positions, largest = block.oracle(predictions, confidence, state[1], state)
                found.searched.append((len(positions), largest))
            else:
                step = block.matching if policy == "greedy" else top_one
                positions = step(predictions, confidence, state[1])
            state = block.commit(state, positions, predictions)
            found.accepted.append(len(positions))
        found.tokens = found.tokens + state[0]
        found.forwards += 1
