"""Scores where a token spans the join of context and choice, and the special tokens of a tokenizer's template."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_shape import MASK, SHAPE
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from checkpoint_convert.hf_package.cached_engine import CachedEngine
from checkpoint_convert.hf_package.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig
from checkpoint_convert.hf_package.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.data.text_ids import beginning_of_text, plain_ids, text_ids
from nld_train.decoding.load import Description, Source
from nld_train.errors import UserError
from nld_train.evaluation.categories import Conversation, Question
from nld_train.evaluation.harness import model as harness
from nld_train.evaluation.harness.bound import BoundSettings, score_by_bound
from nld_train.evaluation.harness.likelihood import score_exactly
from nld_train.evaluation.harness.requests import Scoring

Harness = Callable[..., harness.NldModel]
TEMPLATES = {"none": "$A", "bos": "<s> $A", "bos and eos": "<s> $A </s>", "eos": "$A </s>"}


def tokenizer_of(template: str) -> PreTrainedTokenizerFast:
    """Letters and spaces, and the token "wer"."""
    names = ["<pad>", "<s>", "</s>", " ", "we", "<mask>", "wer", *string.ascii_letters]
    backend = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, [("w", "e"), ("we", "r")]))
    backend.post_processor = processors.TemplateProcessing(
        single=TEMPLATES[template], special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture(scope="module")
def engine() -> CachedEngine:
    torch.manual_seed(0)
    config = NemotronLabsDiffusionConfig(**SHAPE, mask_token_id=MASK, initializer_range=0.35)
    model = NemotronLabsDiffusionModel(config).eval()
    return CachedEngine(model.encoder, model.diffusion_head)


@pytest.fixture
def evaluated(engine: CachedEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """The harness' model over random weights with any tokenizer."""

    @contextmanager
    def opened() -> Iterator[CachedEngine]:
        with torch.no_grad():
            yield engine

    def build(tokenizer: Any, mode: str = "ar") -> harness.NldModel:
        description = Description(60, MASK, 256, has_adapter=False)
        source = Source(Path("nowhere"), description, tokenizer, (2,), 32, opened)
        monkeypatch.setattr(harness, "find_source", lambda *_: source)
        return harness.NldModel("nowhere", mode=mode)

    with torch.no_grad():
        yield build


def requests(*pairs: tuple[str, ...]) -> Any:
    return [SimpleNamespace(args=pair) for pair in pairs]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("mode", ["ar", "diffusion"])
def test_a_choice_whose_token_spans_the_join_is_scored(
    evaluated: Harness, engine: CachedEngine, mode: str, template: str
) -> None:
    tokenizer = tokenizer_of(template)
    context = [1] * (template in ("bos", "bos and eos")) + plain_ids(tokenizer, "the Answ")
    assert plain_ids(tokenizer, "the Answer")[-1] == 6
    choices = {"er": plain_ids(tokenizer, "er"), "et": plain_ids(tokenizer, "et"), " er": plain_ids(tokenizer, " er")}
    scorings = [Scoring(tuple(context), tuple(ids)) for ids in choices.values()]
    found = evaluated(tokenizer, mode).loglikelihood(requests(*(("the Answ", choice) for choice in choices)))
    if mode == "ar":
        expected = [score.loglikelihood for score in score_exactly(engine, scorings, 4, lambda _: None)]
    else:
        expected = [value for value, _ in score_by_bound(engine, scorings, 4, BoundSettings(32, 32), lambda _: None)]
    assert [value for value, _ in found] == pytest.approx(expected, abs=1e-4)
    assert max(expected) < -0.01


def test_the_spaces_at_the_end_of_a_context_belong_to_the_choice(evaluated: Harness) -> None:
    model = evaluated(tokenizer_of("bos and eos"))
    assert model._encode_pair("the  ", "Answer") == model._encode_pair("the", "  Answer")
    before, ids = model._encode_pair("the ", "Answer")
    assert (before[0], ids[0], ids[-1]) == (1, 3, 6)
    assert model._encode_pair(" ", "er") == ([1], plain_ids(model.tokenizer, " er"))


def test_a_choice_without_a_token_is_refused(evaluated: Harness) -> None:
    with pytest.raises(UserError, match="the continuation '' after 'the Answ' has no token"):
        evaluated(tokenizer_of("bos and eos")).loglikelihood(requests(("the Answ", "")))


@pytest.mark.parametrize("template", TEMPLATES)
def test_whole_texts_are_scored_without_the_tokens_of_a_template(
    evaluated: Harness, engine: CachedEngine, template: str
) -> None:
    tokenizer = tokenizer_of(template)
    before = 1 if template in ("bos", "bos and eos") else 2
    scoring = Scoring((before,), tuple(plain_ids(tokenizer, "no Answer")))
    expected = score_exactly(engine, [scoring], 1, lambda _: None)[0].loglikelihood
    model = evaluated(tokenizer)
    assert model.loglikelihood_rolling(requests(("no Answer",))) == [pytest.approx(expected, abs=1e-4)]
    spelt = "<s>no Answer" if before == 1 else "no Answer"
    assert model.loglikelihood_rolling(requests((spelt,))) == [pytest.approx(expected, abs=1e-4)]
    assert model.loglikelihood(requests(("", "no Answer")))[0][0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_begins_as_the_template_says_and_is_not_finished(template: str) -> None:
    tokenizer = tokenizer_of(template)
    beginning = [1] if template in ("bos", "bos and eos") else []
    assert list(beginning_of_text(tokenizer)) == beginning
    assert text_ids(tokenizer, "so") == [*beginning, *plain_ids(tokenizer, "so")]
    assert text_ids(tokenizer, "<s>so") == [1, *plain_ids(tokenizer, "so")]
    assert text_ids(tokenizer, "") == beginning
    assert Conversation(Question("here", "any", ("so",)), tokenizer).prompt(0) == text_ids(tokenizer, "so")


def test_nothing_is_put_around_a_text_from_a_chat_template(evaluated: Harness) -> None:
    tokenizer = tokenizer_of("bos and eos")
    tokenizer.chat_template = "{% for message in messages %}Q {{ message.content }}{% endfor %} A"
    model = evaluated(tokenizer)
    text = model.apply_chat_template([{"role": "user", "content": "so"}])
    assert model.tok_encode(text) == plain_ids(tokenizer, "Q so A")
