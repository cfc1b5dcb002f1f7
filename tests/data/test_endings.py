"""Fill after the ends of documents: how much there is, in samples, in `nld-data inspect` and in a dry run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import composed

from nld_train.config.report import print_plan
from nld_train.config.schema import SourceConfig
from nld_train.data.document_index import DocumentIndex
from nld_train.data.endings import fill_facts, fill_share
from nld_train.data.order import make_order
from nld_train.data.packed import PackedSamples
from nld_train.data.samples import TrainingSamples
from nld_train.errors import UserError
from nld_train.masking.noisy_stream import FILL, last_tokens, noisy_stream

EOS = 2
WriteSet = Callable[..., str]


@pytest.fixture(scope="session")
def short_documents(tmp_path_factory: pytest.TempPathFactory, write_set: WriteSet) -> str:
    """A set of documents of 1 to 20 tokens, each of which ends with the end token."""
    generator = np.random.default_rng(4)
    documents = [[*generator.integers(4, 60, generator.integers(0, 20)).tolist(), EOS] for _ in range(300)]
    return write_set(tmp_path_factory.mktemp("short") / "short", documents)


def test_every_document_that_ends_in_a_sample_ends_in_whole_blocks(short_documents: str, settings: Any) -> None:
    """Those whose last block is not left out; a document that goes on after the sample is not filled."""
    samples = PackedSamples(short_documents, 24)
    training = TrainingSamples(make_order(7, [SourceConfig("x", 1.0)], {"x": samples}), settings)
    filled = 0
    for index in range(len(samples)):
        sample = training[index]
        tokens, documents, maskable = (sample[name].tolist() for name in ("tokens", "documents", "maskable"))
        blocks, begins, hidden = (sample[name].tolist() for name in ("blocks", "begins", "noisy_tokens"))
        assert len(hidden) == 24
        for block in set(blocks):
            members = [n for n in range(24) if blocks[n] == block and maskable[n]]
            if not members:
                continue
            begin = begins[members[0]]
            rest = [i for i in range(begin, 24) if documents[i] == documents[begin]][:5]
            ends = len(rest) < 5 and documents[rest[-1] + 1] != documents[begin]
            expected = [tokens[i] for i in rest] + [EOS] * (5 - len(rest)) * ends
            assert [hidden[n] for n in members] == expected
            filled += ends
        assert all(hidden[n] == settings.mask_token_id for n in range(24) if not maskable[n])
    assert filled > 30


def test_the_share_of_fill_is_counted_from_the_index(short_documents: str) -> None:
    samples = PackedSamples(short_documents, 24)
    fill = total = 0
    for index in range(len(samples)):
        documents = samples.read(index)[1]
        stream = noisy_stream(documents[:-1], last_tokens(documents), 5)
        fill, total = fill + int((stream.sources == FILL).sum()), total + len(stream.sources)
    assert len(samples) < 256, "then every sample is counted"
    assert fill_share(short_documents, 24, 5) == pytest.approx(fill / total)
    assert 0.1 < fill / total < 0.3


def test_the_index_of_documents_is_megatrons(short_documents: str) -> None:
    samples, index = PackedSamples(short_documents, 24), DocumentIndex(short_documents)
    assert len(index) == samples.documents == 300
    assert index.tokens == samples.tokens
    assert index[0:300] == [samples._document_start(document) for document in range(300)]


def test_a_dry_run_says_how_much_is_fill(short_documents: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"data.train=[{{prefix: {short_documents}, weight: 1}}]"
    settings = (data, "batch.sequence_length=24", "diffusion.block_size=5")
    share = f"{fill_share(short_documents, 24, 5):.1%}"
    print_plan(config := composed(*settings), 1, fill_facts(config))
    assert f"{share} of the noisy stream are end tokens" in capsys.readouterr().out
    assert dict(fill_facts(config)).keys() == {"fill in stage joint"}
    assert not list(fill_facts(composed(*settings, "data.documents=ignore")))
    (missing,) = dict(fill_facts(composed("data.train=[{prefix: nowhere/set, weight: 1}]"))).values()
    assert missing.startswith("not counted: nowhere/set.idx does not exist")


def test_a_set_shorter_than_a_sample_has_no_share(short_documents: str) -> None:
    with pytest.raises(UserError, match="fewer than one sample of 99999"):
        fill_share(short_documents, 99999, 5)


def test_configurations_of_the_paper_have_no_borders() -> None:
    """Its public code packs without borders; comparisons need the same."""
    folder = Path(__file__).parents[2] / "configs" / "experiment"
    # The small ablations train on conversations, which are always isolated.
    names = sorted(path.stem for path in folder.glob("*.yaml") if path.stem.startswith(("paper", "ablation_8b")))
    assert len(names) == 4
    for name in names:
        assert composed(f"experiment={name}").data.documents == "ignore", name
