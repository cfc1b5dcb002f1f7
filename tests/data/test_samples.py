"""Samples, order and noise are the same whoever reads them; epochs differ; what a model cannot take is refused."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from token_documents import random_documents

from nld_train.config.schema import SourceConfig
from nld_train.data.batches import batches, sample_indices
from nld_train.data.order import make_order
from nld_train.data.packed import PackedSamples
from nld_train.data.samples import TrainingSamples
from nld_train.errors import UserError

GLOBAL_SIZE = 8


@pytest.fixture
def samples(two_sets: tuple[PackedSamples, PackedSamples], settings: Any) -> TrainingSamples:
    sources = [SourceConfig("first", 2.0), SourceConfig("second", 1.0)]
    return TrainingSamples(make_order(7, sources, dict(zip(("first", "second"), two_sets, strict=True))), settings)


def by_sample_index(
    samples: TrainingSamples, size: int, micro_size: int, workers: int
) -> dict[int, dict[str, torch.Tensor]]:
    """All samples of steps 1 to 3, collected from every data-parallel rank."""
    collected: dict[int, dict[str, torch.Tensor]] = {}
    for rank in range(size):
        steps = list(
            batches(
                samples,
                first_step=1,
                last_step=4,
                global_size=GLOBAL_SIZE,
                micro_size=micro_size,
                rank=rank,
                size=size,
                workers=workers,
            )
        )
        assert len(steps) == 3
        for step, micro_batches in enumerate(steps, start=1):
            assert len(micro_batches) == GLOBAL_SIZE // (micro_size * size)
            for micro_batch in micro_batches:
                for row, sample_index in enumerate(micro_batch["sample_index"].tolist()):
                    assert sample_index // GLOBAL_SIZE == step
                    assert sample_index not in collected
                    collected[sample_index] = {name: tensor[row] for name, tensor in micro_batch.items()}
    return collected


@pytest.mark.parametrize(
    ("size", "micro_size", "workers"),
    [(size, micro, 0) for size in (1, 2, 4, 8) for micro in (1, 2, 4, 8) if size * micro <= 8]
    + [(1, 2, 1), (2, 2, 1), (1, 1, 2), (2, 4, 2)],
)
def test_samples_do_not_depend_on_who_reads_them(
    samples: TrainingSamples, size: int, micro_size: int, workers: int
) -> None:
    collected = by_sample_index(samples, size, micro_size, workers)
    assert sorted(collected) == list(range(GLOBAL_SIZE, 4 * GLOBAL_SIZE))
    for sample_index, sample in collected.items():
        expected = samples[sample_index]
        assert sample.keys() == expected.keys()
        for name in expected:
            assert torch.equal(sample[name], torch.as_tensor(expected[name])), name


def test_sample_indices_follow_the_formula() -> None:
    assert sample_indices(step=3, global_size=8, micro_size=2, rank=1, size=2) == [[26, 27], [30, 31]]


def test_a_sample_is_what_it_says(samples: TrainingSamples, two_sets: tuple[PackedSamples, PackedSamples]) -> None:
    chosen, index = samples.order.locate(5)
    tokens, documents, *_ = two_sets[chosen].read(index)
    sample = samples[5]
    assert sample["tokens"].tolist() == tokens.tolist()
    assert sample["documents"].tolist() == documents.tolist()
    assert sample["supervised"].tolist() == [documents[i] == documents[i + 1] for i in range(24)]
    assert sample["maskable"].all()
    assert sample["masked"].dtype == torch.bool
    assert sample["probability"].dtype == torch.float32
    assert {name: len(sample[name]) for name in ("masked", "probability", "maskable", "supervised")} == {
        "masked": 24,
        "probability": 24,
        "maskable": 24,
        "supervised": 24,
    }


def test_ignoring_borders_makes_one_document(samples: TrainingSamples) -> None:
    plain = TrainingSamples(samples.order, replace(samples.settings, documents="ignore"))
    assert not plain[5]["documents"].any()
    assert plain[5]["supervised"].all()
    assert plain[5]["tokens"].tolist() == samples[5]["tokens"].tolist()


def test_an_ar_stage_has_no_noise(samples: TrainingSamples) -> None:
    plain = TrainingSamples(samples.order, replace(samples.settings, noisy_length=0))
    assert set(plain[0]) == {"tokens", "documents", "supervised", "sample_index"}


def test_epochs_bring_new_noise_and_a_new_order(two_sets: tuple[PackedSamples, PackedSamples], settings: Any) -> None:
    only = two_sets[1]
    samples = TrainingSamples(make_order(7, [SourceConfig("x", 1.0)], {"x": only}), settings)
    first = {samples.order.locate(index)[1]: samples[index] for index in range(len(only))}
    second = {samples.order.locate(index)[1]: samples[index] for index in range(len(only), 2 * len(only))}
    assert first.keys() == second.keys()
    assert list(first) != list(second)
    assert all(torch.equal(first[index]["tokens"], second[index]["tokens"]) for index in first)
    same = sum(torch.equal(first[index]["masked"], second[index]["masked"]) for index in first)
    assert same < len(first) / 4
    assert not any(torch.equal(first[index]["probability"], second[index]["probability"]) for index in first)


def test_a_fixed_level_gives_fixed_noise(samples: TrainingSamples) -> None:
    fixed = [TrainingSamples(samples.order, replace(samples.settings, level=level)) for level in (0.0, 0.5, 1.0)]
    assert all(np.allclose(fixed[1][index]["probability"], 0.999 * 0.5 + 0.001) for index in range(10))
    assert all(torch.equal(fixed[2][index]["masked"], fixed[2][index]["maskable"]) for index in range(10))
    assert torch.equal(fixed[1][4]["masked"], fixed[1][4]["masked"])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("bad_id", "message"), [(3, r"holds the mask token 3, which must not occur"), (260, r"holds token id 260, outside")]
)
def test_what_the_model_cannot_take_is_refused_in_one_line(
    tmp_path: Path, write_set: Any, settings: Any, workers: int, bad_id: int, message: str
) -> None:
    documents = random_documents(6, 40)
    documents[20][0] = bad_id
    prefix = write_set(tmp_path / "bad", documents)
    order = make_order(1, [SourceConfig(prefix, 1.0)], {prefix: PackedSamples(prefix, 24)})
    samples = TrainingSamples(order, settings)
    reader = batches(samples, first_step=0, last_step=10, global_size=8, micro_size=2, workers=workers)
    with pytest.raises(UserError, match=rf"sample \d+ of .*bad\.bin {message}") as caught:
        list(reader)
    assert "\n" not in str(caught.value)


class DyingSamples(torch.utils.data.Dataset[Any]):
    """Its reader is killed, as by the kernel when memory is short."""

    def __getitem__(self, sample_index: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line() -> None:
    reader = batches(DyingSamples(), first_step=0, last_step=1, global_size=2, micro_size=2, workers=1)
    with pytest.raises(UserError, match="a data worker died") as caught:
        list(reader)
    assert "\n" not in str(caught.value)


def test_a_batch_that_does_not_divide_is_refused(samples: TrainingSamples) -> None:
    with pytest.raises(UserError, match=r"batch\.global_size = 8 must be a multiple"):
        next(batches(samples, first_step=0, last_step=1, global_size=8, micro_size=3))
