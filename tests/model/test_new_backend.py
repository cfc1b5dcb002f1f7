"""A new attention backend is one file and one entry: configuration, messages and the model follow."""

from __future__ import annotations

from collections.abc import Iterator

import plain_backend
import pytest
import torch
from oracle import build, logits, tiny_config

from nld_train.config.attention_backends import ATTENTION_BACKENDS, AttentionBackend, listed
from nld_train.config.compose import compose_config
from nld_train.config.validate import validate
from nld_train.errors import UserError
from nld_train.model import streams
from nld_train.model.spec import resolve_attention

pytestmark = pytest.mark.usefixtures("groups")
CPU = torch.device("cpu")
DRAFTER = ("stages=drafter", "init.checkpoint=a")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    register(monkeypatch)
    plain_backend.calls.clear()
    yield
    streams.clear()


def register(monkeypatch: pytest.MonkeyPatch, **abilities: object) -> None:
    backend = AttentionBackend("plain_backend:attend", **abilities)  # type: ignore[arg-type]
    monkeypatch.setitem(ATTENTION_BACKENDS, "plain", backend)


def check(*words: str, world_size: int = 1) -> None:
    validate(compose_config(["run.dry=true", "execution.attention=plain", *words]), world_size)


def refused(*words: str, world_size: int = 1) -> str:
    with pytest.raises(UserError) as error:
        check(*words, world_size=world_size)
    return str(error.value)


def test_it_computes_the_attention_of_a_model() -> None:
    tokens = torch.randint(0, 67, (2, 20), generator=torch.Generator().manual_seed(3))
    documents = torch.tensor([[0] * 6 + [1] * 4, [0] * 10])
    results = []
    for name in ("plain", "dense"):
        config = tiny_config(execution__attention=name, diffusion__block_size=4)
        model = build(config)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(5)
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            results.append(logits(config, model, tokens, documents, two_streams=True))
    assert plain_backend.calls == [20] * config.model.num_hidden_layers
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_what_it_can_do_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    check("execution.device=cpu")
    check(*DRAFTER)
    register(monkeypatch, context_parallel=True)
    check("parallel.context=2", world_size=2)


def test_what_it_cannot_do_is_refused_and_others_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("parallel.context=2", world_size=2) == (
        "execution.attention=plain: does not support parallel.context=2; use flex, chunked or dense"
    )
    register(monkeypatch, trains_on=("cuda",))
    assert refused("execution.device=cpu") == (
        "execution.attention=plain: must be decomposed, chunked or dense, or auto, with execution.device=cpu: there "
        "plain has no backward pass"
    )
    register(monkeypatch, runs_on=("cuda",), trains_on=("cuda",))
    assert refused("execution.device=cpu") == (
        "execution.attention=plain: needs CUDA; with execution.device=cpu use decomposed, chunked or dense"
    )
    with pytest.raises(UserError, match=r"^execution.attention: plain needs a CUDA device; use flex, split"):
        resolve_attention("plain", CPU)
    register(monkeypatch, causal_blocks=False)
    assert refused(*DRAFTER) == (
        "execution.attention=plain: does not support the blocks of drafter stage 'drafter'; "
        "use flex, split, decomposed, chunked or dense"
    )


def test_its_name_is_known_by_its_entry_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ATTENTION_BACKENDS, "plain")
    assert refused() == ("execution.attention=plain: must be one of auto, flex, split, decomposed, chunked, dense")


def test_auto_is_the_declared_default() -> None:
    assert [resolve_attention("auto", torch.device(name)) for name in ("cuda", "cpu", "meta")] == [
        "flex",
        "chunked",
        "chunked",
    ]


def test_names_are_listed_as_words() -> None:
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a or b", "a, b or c"]
