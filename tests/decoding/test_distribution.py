"""With a temperature, self-speculation is distributed as AR sampling: a chi-square test that a planted error fails."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import CountingEngine, random_model
from torch import Tensor

from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.decoding import DecodeOptions, Mode
from nld_train.decoding.algorithms import verification
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.sampling import TokenSampling

VOCABULARY, MASK, LENGTH, ROWS = 6, 5, 4, 3000
PROMPT = [1, 4, 2]


def small_model() -> NemotronLabsDiffusionModel:
    return random_model(
        seed=3, vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, initializer_range=0.5
    )


@pytest.fixture(scope="module")
def small() -> NemotronLabsDiffusionModel:
    return small_model()


def options(seed: int = 0, **changes: float) -> DecodeOptions:
    settings = {"temperature": 1.3, "block_length": 3, **changes}
    return DecodeOptions(LENGTH, seeds=tuple(range(seed, seed + ROWS)), **settings)


def samples(model: NemotronLabsDiffusionModel, mode: Mode, settings: DecodeOptions) -> list[tuple[int, ...]]:
    result = decode(CountingEngine(model), [PROMPT] * ROWS, mode, settings)
    return [tuple(tokens) for tokens in result.token_ids]


@torch.no_grad()
def ar_probabilities(model: NemotronLabsDiffusionModel, settings: DecodeOptions) -> dict[tuple[int, ...], float]:
    """Probability of every continuation, by full forwards over all of them."""
    texts = list(itertools.product([token for token in range(VOCABULARY) if token != MASK], repeat=LENGTH))
    ids = torch.tensor([PROMPT + list(text) for text in texts])
    logits = model(ids).logits[:, len(PROMPT) - 1 : -1]
    logits[..., MASK] = float("-inf")
    steps = TokenSampling(settings, [0]).shaping.distribution(logits).gather(-1, ids[:, len(PROMPT) :, None])
    return dict(zip(texts, steps.squeeze(-1).double().prod(1).tolist(), strict=True))


def p_value(found: list[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Of a chi-square test; continuations that are expected fewer than 8 times are counted as one."""
    counts = Counter(found)
    assert all(expected[text] > 0 for text in counts)
    common = {text for text, probability in expected.items() if probability * len(found) >= 8}
    rest = 1 - sum(expected[text] for text in common)
    pairs = [(counts[text], expected[text] * len(found)) for text in common]
    pairs.append((len(found) - sum(count for count, _ in pairs), max(rest * len(found), 1e-9)))
    statistic = sum((count - mean) ** 2 / mean for count, mean in pairs if mean >= 1)
    assert len(common) > 12, "too few continuations to test anything"
    return float(torch.special.gammaincc(torch.tensor((len(pairs) - 1) / 2.0), torch.tensor(statistic / 2)))


CASES: list[dict] = [{}, {"top_k": 4, "top_p": 0.9, "temperature": 0.9}]


@pytest.mark.parametrize("changes", CASES, ids=str)
@pytest.mark.parametrize("mode", ["ar", "linear", "quadratic"])
def test_samples_are_distributed_as_ar_sampling(small: NemotronLabsDiffusionModel, mode: Mode, changes: dict) -> None:
    settings = options(**changes)
    assert p_value(samples(small, mode, settings), ar_probabilities(small, settings)) > 1e-3


@torch.no_grad()
def ensemble_probabilities(model: NemotronLabsDiffusionModel, settings: DecodeOptions) -> dict[tuple[int, ...], float]:
    """Probability of every continuation if each token is drawn from the mixture after the text before it."""
    ordinary, masks = [token for token in range(VOCABULARY) if token != MASK], [MASK] * settings.block_length
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(LENGTH):
        texts = list(found)
        ids = torch.tensor([PROMPT + list(text) for text in texts])
        noisy = torch.tensor([PROMPT + list(text) + masks for text in texts])
        ar = model(ids).logits[:, -1]
        diffusion = model(noisy, mode="block", block_length=settings.block_length).logits[:, -settings.block_length]
        ar[:, MASK] = diffusion[:, MASK] = float("-inf")
        mixture = settings.ar_weight * ar.softmax(-1) + (1 - settings.ar_weight) * diffusion.softmax(-1)
        steps = TokenSampling(settings, [0]).shaping.distribution(mixture.log()).double()
        rows = zip(texts, steps, strict=True)
        found = {(*text, token): found[text] * float(row[token]) for text, row in rows for token in ordinary}
    return found


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_with_an_ar_weight_below_1_samples_are_distributed_as_the_ensemble(
    small: NemotronLabsDiffusionModel, changes: dict
) -> None:
    settings = options(ar_weight=0.4, **changes)
    found = samples(small, "quadratic", settings)
    assert p_value(found, ensemble_probabilities(small, settings)) > 1e-3
    if not changes:
        assert p_value(found, ar_probabilities(small, settings)) < 1e-6


def test_drafts_of_an_adapter_change_no_distribution(tmp_path: Path) -> None:
    """Another q, the same output."""
    model = small_model()
    peft_model = get_peft_model(small_model(), LoraConfig(r=2, lora_alpha=8, target_modules=["o_proj"]))
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            torch.nn.init.constant_(parameter, 0.4)
    peft_model.save_pretrained(str(tmp_path))
    model.load_drafter(tmp_path)
    settings = options(adapter=True)
    found = samples(model, "linear", settings)
    assert found != samples(model, "linear", options())
    assert p_value(found, ar_probabilities(model, settings)) > 1e-3


def test_some_drafts_are_accepted_and_some_are_not(small: NemotronLabsDiffusionModel) -> None:
    result = decode(CountingEngine(small), [PROMPT] * ROWS, "linear", options())
    first = Counter(accepted[0] for accepted in result.accepted)
    assert min(first[count] for count in (1, 2, 3)) > ROWS // 50


def _without_residual(p: Tensor, q: Tensor, rejected: Tensor) -> Tensor:
    return p


def _every_draft_accepted(tokens: Tensor, probabilities: Tensor) -> Tensor:
    return torch.ones(tokens.shape, dtype=torch.float64) * 0.999


@pytest.mark.parametrize("mode", ["linear", "quadratic"])
@pytest.mark.parametrize(("name", "error"), [("_residual", _without_residual), ("_of", _every_draft_accepted)])
def test_a_planted_error_is_found(
    small: NemotronLabsDiffusionModel, monkeypatch: pytest.MonkeyPatch, mode: Mode, name: str, error: object
) -> None:
    monkeypatch.setattr(verification, name, error)
    assert p_value(samples(small, mode, options()), ar_probabilities(small, options())) < 1e-6


def test_seeds_decide(small: NemotronLabsDiffusionModel) -> None:
    every = [DecodeOptions(9, 3, temperature=1.3, seeds=seed) for seed in (0, 0, 20)]
    texts = [decode(CountingEngine(small), [PROMPT] * 20, "linear", options).token_ids for options in every]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
