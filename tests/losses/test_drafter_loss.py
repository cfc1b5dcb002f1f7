"""The loss of the drafter adapter against plain Python over lists, row by row and token by token."""

from __future__ import annotations

import math

import pytest
import torch
from tolerance import approx_to_rounding
from torch import Tensor

from nld_train.losses.drafter import accept, row_losses
from nld_train.losses.vocabulary import VocabularyShard

pytestmark = pytest.mark.usefixtures("groups")
SIZE, PADDED, MASK = 37, 40, 5


def logits(rows: int, seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, PADDED, generator=torch.Generator().manual_seed(seed))


def naive_row(draft: list[float], target: list[float], temperature: float, top_k: int) -> dict[str, float]:
    """One row by the formulas of docs/method.md; no gradient flows through `lam`."""
    real = [token for token in range(SIZE) if token != MASK]
    most_likely = [sorted(real, key=lambda token: -row[token])[:top_k] for row in (draft, target)]
    chosen = sorted({*most_likely[0], *most_likely[1]})
    q, p = (_softmax([row[token] / temperature for token in chosen]) for row in (draft, target))
    kl = sum(p[i] * math.log(p[i] / q[i]) for i in range(len(chosen)))
    tv = sum(abs(p[i] - q[i]) for i in range(len(chosen))) / 2
    lam = math.exp(-0.5 * sum(min(p[i], q[i]) for i in range(len(chosen))))
    best = max(real, key=lambda token: target[token])
    plain = _softmax([draft[token] for token in chosen])
    cross_entropy = -math.log(plain[chosen.index(best)])
    return {"loss": lam * kl + (1 - lam) * tv + cross_entropy, "kl": kl, "tv": tv, "ce": cross_entropy, "lam": lam}


def _softmax(values: list[float]) -> list[float]:
    highest = max(values)
    powers = [math.exp(value - highest) for value in values]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("top_k", [1, 4, 20, 200])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_every_part_is_the_naive_one(top_k: int, temperature: float) -> None:
    draft, target = logits(6, 1), logits(6, 2)
    target[3] = draft[3]  # draft and target agree in one row
    # The mask token and padding are no predictions, however likely they are.
    draft[:, MASK] = target[:, SIZE] = 50.0
    found = row_losses(VocabularyShard(SIZE, MASK), draft, target, temperature, top_k)
    for row in range(6):
        expected = naive_row(draft[row].tolist(), target[row].tolist(), temperature, top_k)
        wanted = [expected[name] for name in ("loss", "kl", "tv", "ce")]
        # An exponent is off by what its logit is off, so the scale is the largest logit.
        assert found[row].tolist() == approx_to_rounding(wanted, SIZE, scale=[draft[row, :SIZE], *wanted])


def test_gradients_are_those_of_the_naive_loss_with_a_fixed_mixture() -> None:
    """Central differences, with a fixed lambda: no gradient flows through it, nor through the AR logits."""
    draft, target, step = logits(1, 3), logits(1, 4), 1e-4
    leaf, frozen = draft.clone().requires_grad_(), target.clone().requires_grad_()
    row_losses(VocabularyShard(SIZE, MASK), leaf, frozen, 3.0, 6)[:, 0].sum().backward()
    assert frozen.grad is None
    lam = naive_row(draft[0].tolist(), target[0].tolist(), 3.0, 6)["lam"]

    def fixed(row: list[float]) -> float:
        parts = naive_row(row, target[0].tolist(), 3.0, 6)
        return lam * parts["kl"] + (1 - lam) * parts["tv"] + parts["ce"]

    for token in range(SIZE):
        moved = [
            [value + sign * step * (index == token) for index, value in enumerate(draft[0].tolist())]
            for sign in (1, -1)
        ]
        expected = (fixed(moved[0]) - fixed(moved[1])) / (2 * step)
        assert float(leaf.grad[0, token]) == pytest.approx(expected, abs=2e-4), token
    assert not leaf.grad[0, [MASK, *range(SIZE, PADDED)]].any()


def test_a_perfect_draft_costs_nothing_but_its_entropy() -> None:
    target = logits(3, 5)
    loss, kl, tv, cross_entropy = row_losses(VocabularyShard(SIZE, MASK), target, target, 3.0, 200).T
    assert torch.allclose(kl, torch.zeros(3), atol=1e-6)
    assert torch.allclose(tv, torch.zeros(3), atol=1e-6)
    assert torch.allclose(loss, cross_entropy, atol=1e-6)


def naive_acceptance(matches: list[bool]) -> tuple[int, list[int]]:
    """Accepted drafts of one block, and the indices of those that are scored."""
    accepted = 0
    while accepted < len(matches) and matches[accepted]:
        accepted += 1
    return accepted, list(range(min(accepted + 1, len(matches))))


def test_the_accepted_prefix_and_the_first_mismatch() -> None:
    """Blocks of different lengths, one accepted whole, one without a match, and one with a late match."""
    drafts = [[True, True, True], [False], [True, False, True, True], [False, True, True], [True], [True, True, False]]
    blocks = torch.tensor([number for number, matches in enumerate(drafts) for _ in matches])
    steps = torch.tensor([step for matches in drafts for step in range(1, len(matches) + 1)])
    flat = torch.tensor([one for matches in drafts for one in matches])
    found = accept(blocks, steps, flat, len(drafts), 5)
    expected = [naive_acceptance(matches) for matches in drafts]
    assert found.accepted.tolist() == [accepted for accepted, _ in expected]
    starts = [sum(map(len, drafts[:number])) for number in range(len(drafts))]
    scored = found.scored(int(found.is_scored.sum()))
    assert scored.tolist() == [starts[n] + index for n, (_, scored) in enumerate(expected) for index in scored]
    assert found.weights[scored].tolist() == pytest.approx([1 / len(scored) for _, scored in expected for _ in scored])


def test_no_blocks_are_no_loss() -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    found = accept(nothing, nothing, torch.empty(0, dtype=torch.bool), 0, 4)
    assert (len(found.accepted), len(found.scored(0)), len(found.weights)) == (0, 0, 0)


def test_the_most_likely_tokens_are_sorted_and_real() -> None:
    vocabulary, values = VocabularyShard(SIZE, MASK), logits(4, 6)
    values[:, MASK] = values[:, PADDED - 1] = 99.0
    found = vocabulary.top(vocabulary.allowed(values), 200)
    assert found.shape == (4, SIZE - 1)
    for row in range(4):
        real = [token for token in range(SIZE) if token != MASK]
        assert found[row].tolist() == sorted(real, key=lambda token: -float(values[row, token]))


def test_sampling_inverts_the_cumulative_distribution() -> None:
    vocabulary, count = VocabularyShard(SIZE, MASK), 20_000
    values = logits(1, 7, scale=1.0)
    values[:, MASK] = values[:, SIZE] = 9.0
    allowed = vocabulary.allowed(values)
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = vocabulary.draw(allowed.expand(count, -1), uniform)
    shares = torch.bincount(drawn, minlength=PADDED) / count
    assert torch.allclose(shares, allowed.softmax(-1)[0], atol=2 / count)
    ends = vocabulary.draw(allowed.expand(2, -1), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert ends.tolist() == [0, SIZE - 1]
