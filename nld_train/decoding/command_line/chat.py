"""`nld-decode --chat`: talks with a model, turn after turn, in a mode that can be switched between turns."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping

from nld_train.console import plain_console
from nld_train.data.chat.prompt import require_template
from nld_train.data.pictures.prompt import with_pictures
from nld_train.decoding.algorithms.options import Mode, check_block_length, check_request
from nld_train.decoding.command_line.chat_answers import Answers
from nld_train.decoding.command_line.chat_history import ChatHistory, Content, shown_text
from nld_train.decoding.command_line.chat_lines import ChatLines
from nld_train.decoding.command_line.records import Records, record_of
from nld_train.decoding.command_line.request import chat_format_of, policy_of, source_of, value_errors_as_user_errors
from nld_train.decoding.command_line.variants import DecodeVariant, chat_variants
from nld_train.decoding.engines.engine import Engine
from nld_train.decoding.load import Source
from nld_train.decoding.mode_options import CHAT_MAX_NEW_TOKENS
from nld_train.errors import UserError
from nld_train.printable import one_line

_DEFAULT_MODE: Mode = "linear"
# So many more of the longest answers have room in the cache; a longer conversation makes it larger.
_MORE_ANSWERS = 3
_HELP = """\
/mode [MODE]    decode in another mode from now on: ar, diffusion, linear, quadratic
/image FILE     show the model a picture with the next message, where its text has [IMG] or before it
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
        chat = Chat(engine, source, variants, mode, history, records, ChatLines(quiet=arguments.json))
        for image in arguments.image:
            chat.attach(image, "--image")
        chat.run()
    records.write()


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
        self._source, self._variants, self._mode = source, variants, mode
        self._history, self._records, self._lines = history, records, lines
        console = plain_console(soft_wrap=True)
        # Notes and figures are no part of a text that is written to a file or a pipe.
        self._notes = plain_console(soft_wrap=True, stderr=records.printed or not console.is_terminal)
        shown, room = None if records.printed else console, _MORE_ANSWERS * self._variant.options.max_new_tokens
        self._answers = Answers(engine, source.tokenizer, shown, lines.interactive, room)
        self._pictures: list[bytes] = []
        self._ended = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._note(_HELP),
            "/mode": self._switch_mode,
            "/image": self._attach,
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
            message = with_pictures(line.removeprefix("/"), self._pictures, "pictures of the message")
            if self._answer(message):
                self._pictures.clear()
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

    def attach(self, path: str, where: str) -> None:
        """The next message has the picture of this file.

        Args:
            path: of the file.
            where: who names it, for messages.

        Raises:
            UserError: it cannot be read, is no picture, or the model reads text alone.
        """
        if self._source.pictures is None:
            raise UserError(f"{where}: this model has no vision tower: it reads text alone")
        self._pictures.append(self._source.pictures.read(path, "", where).data)

    def _attach(self, path: str) -> None:
        if not path:
            raise UserError("/image: names no file")
        self.attach(path, "/image")
        count = len(self._pictures)
        self._note(f"{count} picture{'s' if count > 1 else ''} for the next message")

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
        self._pictures.clear()
        self._note("all turns forgotten")

    def _quit(self, _: str) -> None:
        self._ended = True

    def _answer(self, message: Content) -> bool:
        """Answers a message, shows the answer and adds both to the history; False if it was stopped at once."""
        variant = self._variant
        ids, dropped = self._history.prompt(message, variant.options.max_new_tokens)
        if dropped:
            turns = "the oldest turn was" if dropped == 1 else f"the {dropped} oldest turns were"
            self._note(f"the conversation is longer than the context: {turns} dropped")
        answer = self._answers.decode(variant, ids)
        if answer.ended.finish is None and not answer.ended.tokens:
            self._note("stopped before the first token: message and answer are not part of the conversation")
            return False
        record = record_of(variant.name, shown_text(message), self._source.tokenizer, answer.ended)
        counts = {**answer.counts(), "dropped_turns": dropped}
        self._records.add({**record, **counts, "finish": record["finish"] or "stopped"})
        self._history.turns.append((message, record["text"]))
        self._note(answer.figures())
        return True
