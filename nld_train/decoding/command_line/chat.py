"""`nld-decode --chat`: talks with a model, turn after turn, in a mode that can be switched between turns."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

from nld_train.console import plain_console
from nld_train.data.chat.prompt import require_template
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import Mode, check_block_length, check_request
from nld_train.decoding.algorithms.outputs import DecodeResult, Progress, per_forward
from nld_train.decoding.algorithms.statistics import accepted_length
from nld_train.decoding.command_line.chat_history import ChatHistory
from nld_train.decoding.command_line.chat_lines import ChatLines
from nld_train.decoding.command_line.observers import Observers
from nld_train.decoding.command_line.records import Records, record_of
from nld_train.decoding.command_line.request import chat_format_of, policy_of, source_of, value_errors_as_user_errors
from nld_train.decoding.command_line.terminal import Watcher, print_sequence
from nld_train.decoding.command_line.variants import DecodeVariant, chat_variants
from nld_train.decoding.engines.engine import Engine
from nld_train.decoding.load import Source
from nld_train.decoding.mode_options import CHAT_MAX_NEW_TOKENS
from nld_train.decoding.policies.commit import CommitPolicy
from nld_train.errors import UserError
from nld_train.printable import one_line

_DEFAULT_MODE: Mode = "linear"
_HELP = """\
/mode [MODE]    decode in another mode from now on: ar, diffusion, linear, quadratic
/system [TEXT]  set the system prompt; without TEXT, remove it
/again          answer the last message once more, for instance in another mode
/reset          forget all turns; the system prompt stays
/quit           end, as Ctrl-D does
A message of several lines stands between triple quotes; one that begins with a slash begins with two.
Ctrl-C stops an answer."""


def talk(arguments: Namespace) -> None:
    """Runs a command line of `nld-decode` with --chat and without prompts.

    Raises:
        UserError: a request that cannot be fulfilled, found before any weight is read; or a line of standard input that
            cannot be answered, where nobody types it.
    """
    source = source_of(arguments)
    require_template(source.tokenizer, None, "--chat")
    if arguments.max_new_tokens is None:
        arguments.max_new_tokens = max(1, min(CHAT_MAX_NEW_TOKENS, source.description.context_length // 2))
    history = ChatHistory(chat_format_of(arguments, source), arguments.system, source.description.context_length)
    mode = arguments.mode or _DEFAULT_MODE
    probe, _ = history.prompt("a", arguments.max_new_tokens)
    with value_errors_as_user_errors():
        variants = chat_variants(arguments, source, policy_of(arguments, source))
        check_request(source.description, [probe], mode, variants[mode].options)
    records = Records(arguments.json, arguments.output)
    with source.open() as engine:
        Chat(engine, source, variants, mode, history, records, ChatLines(quiet=arguments.json)).run()
    records.write()


@dataclass(frozen=True)
class Answer:
    """An answer of the model.

    Attributes:
        ended: its final state; that of the last forward where it was stopped.
        result: of the decoder; None where it was stopped.
    """

    ended: Progress
    result: DecodeResult | None


class _Last:
    """An observer that keeps the last state of a sequence."""

    def __init__(self) -> None:
        self.progress = Progress(sequence=0, tokens=())

    def __call__(self, progress: Progress) -> None:
        self.progress = progress


class Chat:
    """A chat with the model on standard input and output.

    Args:
        engine: the model.
        source: its checkpoint.
        variants: of every mode.
        mode: to begin with.
        history: the conversation.
        records: of the answers.
        lines: of the user.
    """

    def __init__(
        self,
        engine: Engine,
        source: Source,
        variants: Mapping[Mode, DecodeVariant],
        mode: Mode,
        history: ChatHistory,
        records: Records,
        lines: ChatLines,
    ) -> None:
        self._engine, self._source, self._variants, self._mode = engine, source, variants, mode
        self._history, self._records, self._lines = history, records, lines
        self._console = plain_console(soft_wrap=True)
        # Notes and figures are no part of a text that is written to a file or a pipe.
        self._notes = plain_console(soft_wrap=True, stderr=records.printed or not self._console.is_terminal)
        self._policies: dict[str, CommitPolicy] = {}
        self._answers = 0
        self._ended = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._note(_HELP),
            "/mode": self._switch_mode,
            "/system": self._set_system,
            "/again": self._answer_again,
            "/reset": self._reset,
            "/quit": self._quit,
        }

    def run(self) -> None:
        """Takes lines until their end.

        Raises:
            UserError: a line that cannot be answered, where nobody types it.
        """
        if self._lines.interactive:
            context = f"{self._source.description.context_length:,} tokens of context"
            self._note(f"{self._variant.name}, {context}; /help lists the commands, Ctrl-D ends")
        while not self._ended:
            try:
                line = self._lines.read()
                if line is None:
                    return
                self._take(line)
            except UserError as error:
                if not self._lines.interactive:
                    raise
                self._note(f"error: {one_line(str(error))}")
            except KeyboardInterrupt:
                if not self._lines.interactive:
                    raise
                self._note("\nCtrl-D or /quit ends")

    @property
    def _variant(self) -> DecodeVariant:
        return self._variants[self._mode]

    def _note(self, text: str) -> None:
        self._notes.print(text, style="dim")

    def _take(self, line: str) -> None:
        """A command, or the user's next message."""
        if not line.startswith("/") or line.startswith("//"):
            self._answer(line.removeprefix("/"))
            return
        name, _, rest = line.partition(" ")
        if name not in self._commands:
            raise UserError(f"{name} is no command; there are {', '.join(self._commands)}")
        self._commands[name](rest.strip())

    def _switch_mode(self, name: str) -> None:
        if name and name not in self._variants:
            raise UserError(f"/mode: {name!r} is none of {', '.join(self._variants)}")
        mode = next((mode for mode in self._variants if mode == name), self._mode)
        with value_errors_as_user_errors():
            check_block_length(self._source.description, mode, self._variants[mode].options.block_length)
        self._mode = mode
        self._note(f"mode {self._variant.name}")

    def _set_system(self, text: str) -> None:
        before, self._history.system = self._history.system, text or None
        try:
            self._history.check()
        except UserError:
            self._history.system = before
            raise
        self._note("system prompt set" if text else "no system prompt")

    def _answer_again(self, _: str) -> None:
        if not self._history.turns:
            raise UserError("/again: there is no message yet")
        turn, answered = self._history.turns.pop(), False
        try:
            answered = self._answer(turn[0])
        finally:
            if not answered:
                self._history.turns.append(turn)

    def _reset(self, _: str) -> None:
        self._history.turns.clear()
        self._note("all turns forgotten")

    def _quit(self, _: str) -> None:
        self._ended = True

    def _answer(self, message: str) -> bool:
        """Answers a message, shows the answer and adds both to the history; False if it was stopped at once."""
        variant = self._variant
        ids, dropped = self._history.prompt(message, variant.options.max_new_tokens)
        if dropped:
            turns = "the oldest turn was" if dropped == 1 else f"the {dropped} oldest turns were"
            self._note(f"the conversation is longer than the context: {turns} dropped")
        answer = self._decode(variant, ids)
        self._answers += 1
        stopped = answer.ended.finish is None
        if not answer.ended.tokens and stopped:
            self._note("stopped before the first token: message and answer are not part of the conversation")
            return False
        record = record_of(variant.name, message, self._source.tokenizer, answer.ended)
        lengths = {"accepted_length": answer.result and accepted_length(answer.result), "prompt_tokens": len(ids)}
        self._records.add({**record, **lengths, "dropped_turns": dropped, "finish": record["finish"] or "stopped"})
        self._history.turns.append((message, record["text"]))
        self._note(_figures(variant, answer))
        return True

    def _decode(self, variant: DecodeVariant, ids: list[int]) -> Answer:
        """Decodes an answer and streams it to a terminal; prints it where it ends."""
        tokenizer, last, watcher = self._source.tokenizer, _Last(), None
        if self._console.is_terminal and not self._records.printed:
            watcher = Watcher(self._console, tokenizer, variant.mode, [""])
        options = replace(variant.options, seeds=variant.options.seed_of(self._answers))
        result = None
        try:
            with watcher or nullcontext(), value_errors_as_user_errors():
                observer = Observers(watcher, last)
                result = decode(self._engine, [ids], variant.mode, options, self._policy(variant), observer)
        except KeyboardInterrupt:
            if not self._lines.interactive:
                raise
        ended = _without_block(last.progress)
        if not self._records.printed and (ended.tokens or result is not None):
            print_sequence(self._console, tokenizer, variant.mode, "", ended)
        return Answer(ended, result)

    def _policy(self, variant: DecodeVariant) -> CommitPolicy | None:
        if variant.policy is None:
            return None
        if variant.name not in self._policies:
            self._policies[variant.name] = variant.policy(self._engine)
        return self._policies[variant.name]


def _without_block(progress: Progress) -> Progress:
    """A state without the tokens of an incomplete block."""
    size = len(progress.tokens)
    return replace(progress, block=(), committed_by=progress.committed_by[:size], drafted=progress.drafted[:size])


def _figures(variant: DecodeVariant, answer: Answer) -> str:
    """The line below an answer."""
    ended, new = answer.ended, len(answer.ended.tokens)
    parts = [f"{new} tokens", f"{per_forward(new, ended.forwards):.2f} tokens per forward"]
    accepted = answer.result and accepted_length(answer.result)
    if variant.mode in ("linear", "quadratic") and accepted is not None:
        parts.append(f"accepted length {accepted:.2f}")
    if ended.seconds > 0:
        parts.append(f"{new / ended.seconds:,.0f} tokens/s")
    if ended.finish == "length":
        parts.append("cut by --max-new-tokens")
    if ended.finish is None:
        parts.append("stopped")
    return f"{variant.name}: {', '.join(parts)}"
