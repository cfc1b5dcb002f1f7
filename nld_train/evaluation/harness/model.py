"""The model class of lm-evaluation-harness: tokenizes its requests and sends them to all replicas of the model."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from nld_train.data.chat.prompt import ChatFormat, parse_arguments, require_template
from nld_train.data.text_ids import beginning_of_text, plain_ids, text_ids
from nld_train.decoding.algorithms.options import check_block_length, check_predictions
from nld_train.decoding.algorithms.outputs import per_forward
from nld_train.decoding.command_line.request import layout_of, value_errors_as_user_errors
from nld_train.decoding.engines.cycles import check_graphs
from nld_train.decoding.load import Source, find_source
from nld_train.errors import UserError
from nld_train.evaluation.harness.chat_settings import ChatSettings
from nld_train.evaluation.harness.generation_arguments import TextLimits, check_tasks, generation_settings
from nld_train.evaluation.harness.pictures import (
    check_picture_tasks,
    content_at_marks,
    picture_prompt,
    visuals_of,
)
from nld_train.evaluation.harness.requests import Generated, Generation, Score, Scoring
from nld_train.evaluation.harness.settings import EvaluationSettings
from nld_train.evaluation.harness.worker import Worker
from nld_train.evaluation.harness.worker_group import WorkerGroup, all_processes
from nld_train.output import write_error
from nld_train.printable import printable
from nld_train.processes import rank

_APPLY = "--apply-chat-template"
# Characters of a task's text in messages.
_SHOWN = 40


@register_model("nld")
class NldModel(TemplateLM):
    """A checkpoint of this project for lm-evaluation-harness. Ranks other than 0 only run `workers.worker_loop`.

    Args:
        checkpoint: a run, a checkpoint of it, an imported checkpoint, or an export.
        tokenizer: directory of a tokenizer that is used instead of the checkpoint's.
        max_batch_size: lm_eval's, not used.
        device: lm_eval's, not used.
        chat: whether and how prompts are put into a chat template; None for the next two alone, which lm_eval's own
            command can give.
        chat_template: file of a template that is used instead of the tokenizer's.
        chat_template_args: arguments of the template, as an object or as JSON.
        tasks: of lm_eval, whose generation arguments are checked before the weights are read; those of other tasks are
            checked as they are used.
        **settings: of `EvaluationSettings.of`.

    Raises:
        UserError: a checkpoint that cannot be read, or that lacks the required adapter or chat template.
        ValueError: a setting out of its range.
    """

    # Whether lm_eval gives it tasks with pictures; those of a text model are refused here.
    MULTIMODAL = True

    def __init__(
        self,
        checkpoint: str,
        tokenizer: str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        chat: ChatSettings | None = None,
        chat_template: str | None = None,
        chat_template_args: Mapping[str, Any] | str | None = None,
        tasks: Sequence[Any] = (),
        **settings: Any,
    ) -> None:
        super().__init__()
        self.settings = EvaluationSettings.of(**settings)
        directory = self.settings.adapter_directory
        layout = layout_of(self.settings)
        layout.require_whole_models()
        adapter = None if directory is None else Path(directory)
        if isinstance(chat_template_args, str):
            chat_template_args = parse_arguments(chat_template_args)
        template = None if chat_template is None else Path(chat_template)
        self.chat = chat or ChatSettings(template=template, arguments=chat_template_args or {})
        self.source = find_source(Path(checkpoint), tokenizer, adapter, layout, self.chat.template)
        _check(self.source, self.settings, self.chat)
        self._limits = TextLimits(self.settings.max_new_tokens, self.source.description.context_length)
        check_tasks(tasks, self._limits)
        check_picture_tasks(tasks, self.source)
        self.resolved = self.settings.resolved(self.source.block_length, self.source.description.clean_stream)
        policy = self.settings.policy.build(self.source.directory, layout.processes)
        with ExitStack() as stack:
            engine = stack.enter_context(self.source.open())
            group = stack.enter_context(all_processes())
            with value_errors_as_user_errors():
                check_graphs(engine.cycles, self.settings.cuda_graphs)
            worker = Worker(engine, self.source, self.settings, policy(engine), shows_progress=rank() == 0)
            # Open until `close`, and closed by now where something was refused.
            self._open = stack.pop_all()
        self.workers = WorkerGroup(worker.answer, group)
        self.tokenizer = self.source.tokenizer
        self._beginning, self._chat = beginning_of_text(self.tokenizer), bool(self.chat.apply_chat_template)
        self._chat_format = ChatFormat(self.tokenizer, self.chat.arguments, self.chat.name, self.source.pictures)
        self._warned = False
        self.max_length = self.source.description.context_length
        self.errors: list[float] = []
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._texts = 0
        # A causal model needs no position for the last id; a denoised block does.
        self._most_ids = self.max_length if self.settings.bounds else self.max_length + 1

    def close(self) -> None:
        """Frees the model; on rank 0, also ends the worker loops of the other ranks."""
        if self.workers.rank == 0:
            self.workers.shut_down()
        self._open.close()

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self.source.stop_tokens[0]

    @property
    def prefix_token_id(self) -> int:
        """The context in place of an empty one: the last token before any text, else the one that ends a document."""
        return self._beginning[-1] if self._beginning else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Key of lm_eval's request caches: another template or other arguments give other prompts."""
        how = [self.tokenizer.chat_template, self.chat.name, dict(self.chat.arguments)]
        digest = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:12]
        return f"{self.source.directory}-{digest}".replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The text of the template, or of the one of that name; prompts are made from it from then on."""
        if not chat_template:
            return None
        name = chat_template if isinstance(chat_template, str) else None
        require_template(self.tokenizer, name, _APPLY)
        self._chat_format = replace(self._chat_format, name=name)
        text: str = self.tokenizer.get_chat_template(name)
        return text

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation by the tokenizer's template, to which nothing is added from then on.

        As in lm_eval's own models, a system message is left out where the template fails on it, with a warning.

        Raises:
            UserError: the template fails.
        """
        self._chat = True
        where = "--tasks: a prompt"
        messages: list[dict[str, Any]] = list(chat_history)
        if self.source.pictures is not None:
            messages = [message | {"content": content_at_marks(message["content"])} for message in messages]
        others = [message for message in messages if message["role"] != "system"]
        try:
            return self._chat_format.text(messages, where, None, add_generation_prompt)
        except UserError as error:
            if len(others) == len(messages):
                raise
            text = self._chat_format.text(others, where, None, add_generation_prompt)
            if not self._warned:
                write_error(printable(f"warning: {error}; system messages are left out"))
            self._warned = True
            return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids as in `nld-decode`; a text from a chat template has all its special tokens."""
        if add_special_tokens is None:
            add_special_tokens = not self._chat
        return (text_ids if add_special_tokens else plain_ids)(self.tokenizer, string)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of continuations, and whether greedy decoding gives them."""
        return self._loglikelihood_tokens([(request.args, *self._encode_pair(*request.args)) for request in requests])

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context, without the spaces at its end, and of the continuation with them.

        The continuation has the ids of the whole text after those of the context. Where the context's are not the
        beginning of the whole, because a token spans the join, it is encoded alone.

        Raises:
            UserError: the continuation has no token: its likelihood of 1 would win every comparison.
        """
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        before, whole = self.tok_encode(stripped), self.tok_encode(stripped + continuation)
        ids = whole[len(before) :] if whole[: len(before)] == before else []
        ids = ids or plain_ids(self.tokenizer, continuation)
        if not ids:
            raise UserError(
                f"--tasks: the continuation {continuation!r} after {stripped[-_SHOWN:]!r} has no token, and so no "
                "likelihood"
            )
        return before, ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        scorings = [self._truncated(context, continuation) for _, context, continuation in requests]
        scores = self._scores("score", scorings)
        answers = [(score.loglikelihood, score.greedy) for score in scores]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows as long as the context, each token predicted once."""
        windows: list[Scoring] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = text_ids(self.tokenizer, request.args[0])[len(self._beginning) :]
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self._most_ids - 1, 1):
                windows.append(self._truncated(*make_disjoint_window(pair)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, self._scores("score_windows", windows), strict=True):
            totals[owner] += score.loglikelihood
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations in this mode, each up to the first of its stop strings."""
        generations = [self._generation(request.args[0], request.args[1], visuals_of(request)) for request in requests]
        answers: list[Generated] = self.workers.broadcast_request("generate", generations)
        for request, answer in zip(requests, answers, strict=True):
            count = {"texts": 1, "new_tokens": answer.new_tokens, "forwards": answer.forwards}
            self.counts[request.task_name or ""].update(count)
            if not visuals_of(request):  # the key would be the same for any picture
                self.cache_hook.add_partial("generate_until", request.args, answer.text)
        return [answer.text for answer in answers]

    def _scores(self, kind: str, requests: list[Scoring]) -> list[Score]:
        scores: list[Score] = self.workers.broadcast_request(kind, requests)
        self.errors += [score.standard_error for score in scores]
        return scores

    def _truncated(self, context: Sequence[int], continuation: Sequence[int]) -> Scoring:
        """The pair, its context truncated from the left to fit the context length."""
        self._refuse_masks(context, continuation)
        continuation = tuple(continuation)[-(self._most_ids - 1) :]
        context = tuple(context or [self.prefix_token_id])[-(self._most_ids - len(continuation)) :]
        return Scoring(context, continuation)

    def _generation(self, context: str, arguments: dict[str, Any], visuals: Sequence[Any]) -> Generation:
        prompt = self._prompt(context, visuals)
        self._refuse_masks(prompt, ())
        settings = generation_settings(arguments, self._limits)
        # At least half of the context is for the prompt, whatever the limit of new tokens.
        longest = max(self.max_length - settings.max_new_tokens, self.max_length // 2)
        if visuals and len(prompt) > longest:
            raise UserError(
                f"--tasks: a prompt with pictures has {len(prompt)} tokens, and {longest} fit before "
                f"{settings.max_new_tokens} new ones into the context of {self.max_length}; it cannot be cut"
            )
        prompt = prompt if visuals else tuple(prompt[-longest:])
        room = min(settings.max_new_tokens, self.max_length - len(prompt))
        self._texts += 1
        return Generation(prompt, replace(settings, max_new_tokens=room), self.settings.seed + self._texts - 1)

    def _prompt(self, context: str, visuals: Sequence[Any]) -> Sequence[int]:
        if not visuals:
            return self.tok_encode(context) or [self.prefix_token_id]
        return picture_prompt(self.source, self.tok_encode, context, visuals)

    def _refuse_masks(self, *texts: Sequence[int]) -> None:
        if any(self.source.description.mask_token_id in text for text in texts):
            raise UserError(
                f"--tasks: a text of a task contains the mask token (id {self.source.description.mask_token_id}), "
                "which represents no text"
            )

    def figures(self) -> dict[str, Any]:
        """Figures that lm_eval does not compute: errors of the bounds, tokens per forward by task and their mean."""
        figures: dict[str, Any] = {
            task: dict(count) | {"tokens_per_forward": per_forward(count["new_tokens"], count["forwards"])}
            for task, count in self.counts.items()
        }
        found: dict[str, Any] = {}
        if figures:
            mean = fmean(figure["tokens_per_forward"] for figure in figures.values())
            found = {"generation": figures, "mean_over_tasks": {"tokens_per_forward": mean}}
        if self.settings.bounds and self.errors:
            mean_square = sum(error**2 for error in self.errors) / len(self.errors)
            found["bound"] = {
                "samples": self.settings.noise_samples,
                "block_length": self.resolved["block_length"],
                "requests": len(self.errors),
                "sampled": sum(error > 0 for error in self.errors),
                "standard_error": sqrt(mean_square),
                "largest_standard_error": max(self.errors),
            }
        return found


def _check(source: Source, settings: EvaluationSettings, chat: ChatSettings) -> None:
    """Refuses a missing adapter or chat template before any weight is read."""
    block_length = source.block_length if settings.block_length is None else settings.block_length
    with value_errors_as_user_errors():
        check_predictions(source.description, settings.mode, settings.block_start)
        if settings.likelihood == "ar":
            check_predictions(source.description, "ar")
        check_block_length(source.description, settings.mode, block_length)
    if settings.adapter and not source.description.has_adapter:
        raise UserError(f"adapter: {source.directory} has no drafter adapter")
    if chat.apply_chat_template:
        require_template(source.tokenizer, chat.name, _APPLY)
