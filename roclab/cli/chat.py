"""The conversation at the terminal: reading lines, /commands, showing a reply as it comes."""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from roclab.cli.options import THINKING
from roclab.core.exceptions import RocLabError
from roclab.core.files import read_json, write_json
from roclab.lm.conversation import Conversation, read_saved

HELP = """\
/help               this list
/think on|off|auto  thinking mode, where the model has one
/system [TEXT]      show or set the system message; /system none removes it
/reset              forget the conversation
/save FILE          write it as JSON (take it up with --load FILE)
/stats              tokens and speed of the last reply
/quit               end (so does ctrl-d)
ctrl-c cuts a reply short, or drops a half-typed line; what was said stays.
Text in several lines: paste it, or end a line with \\."""


class ChatLoop:
    """Reads from standard input, writes to standard output; prompts and colours only for a person at a terminal."""

    def __init__(self, conversation: Conversation, name: str):
        self.conversation, self.name = conversation, name
        self.interactive = sys.stdin.isatty()
        self.readline: Any = None
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def run(self) -> None:
        """Until /quit or ctrl-d."""
        if self.interactive:
            with contextlib.suppress(ImportError):
                self.readline = import_module("readline")  # arrow keys and history in input()
                self.readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one message
            print(f"{self.name}. /help lists the commands, ctrl-d ends.")
        while True:
            try:
                if not self._turn():
                    return
            except EOFError:
                print()
                return
            except KeyboardInterrupt:  # at the prompt, or in the moment after a reply: nothing is lost
                if not self.interactive:
                    print()
                    return
                print("\n(ctrl-d or /quit ends)")

    def _turn(self) -> bool:
        """Read once and answer. False: the conversation ends."""
        text = self._read()
        if text in ("/quit", "/exit"):
            return False
        try:
            if text.startswith("/"):
                self._command(*text[1:].split(maxsplit=1))
            elif text.strip():
                self._answer(text)
        except RocLabError as error:  # a mistake ends nothing: the conversation goes on
            print(f"roclab: {error}", file=sys.stderr)
        return True

    def load(self, saved: Any, path: Path) -> None:
        self.conversation.load(saved, str(path))
        print(f"{len(self.conversation.turns)} messages from {path}")
        if self.conversation.tokenizer.uses_date:
            print(f"The model is told that it is {self.conversation.began:%Y-%m-%d}, as when the conversation began.")

    def _read(self) -> str:
        lines = [self._line("> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            with contextlib.suppress(EOFError):  # what was typed so far is said
                lines.append(self._line("… "))
        return "\n".join(lines).rstrip()

    def _line(self, prompt: str) -> str:
        entered = self.readline.get_current_history_length() if self.readline else 0
        try:
            return input(prompt if self.interactive else "")
        except KeyboardInterrupt:
            # Python hears of a ctrl-c that came while the prompt was set up only once a line is complete: that line,
            # typed after it, counts.
            if self.readline is None or self.readline.get_current_history_length() == entered:
                raise
            return self.readline.get_history_item(entered + 1)

    def _answer(self, text: str) -> None:
        part_before = "content"
        pieces = self.conversation.reply(text)
        try:
            for part, piece in pieces:
                if part == "unannounced":
                    print(self._dim("\n[that was its thinking]\n"))
                elif part != part_before:
                    print(self._dim("thinking: ") if part == "thinking" else "\n", end="")
                    part_before = part
                print(self._dim(piece) if part == "thinking" else piece, end="", flush=True)
        except KeyboardInterrupt:
            pieces.close()
            print(self._dim(" [cut short]"), end="")
        print()
        last, context = self.conversation.last, self.conversation.model.config.max_position_embeddings
        if last and last.finish_reason == "length":
            full = last.prompt_tokens + last.new_tokens >= context
            limit = f"[ended at --max-new-tokens {self.conversation.params.max_new_tokens}]"
            room = f"[ended: the context of {context:,} tokens is full; /reset begins a new conversation]"
            print(self._dim(room if full else limit))

    def _dim(self, text: str) -> str:
        return f"\033[2m{text}\033[0m" if self.colour else text

    def _command(self, word: str = "", argument: str = "") -> None:
        talk, argument = self.conversation, argument.strip()
        match word:
            case "help":
                print(HELP)
            case "reset":
                talk.reset()
                print("A new conversation.")
            case "save":
                self._save(argument)
            case "system":
                if argument:
                    talk.set_system(None if argument == "none" else argument)
                print(f"system: {talk.system or '(none of yours; the template may have its own)'}")
            case "stats":
                self._stats()
            case "think":
                if argument not in THINKING:
                    raise RocLabError("/think: choose on, off or auto")
                if argument != "auto" and not talk.tokenizer.has_thinking:
                    raise RocLabError("/think: this model's chat template has no switch for thinking")
                talk.thinking = THINKING[argument]
                print(f"thinking: {argument}")
            case _:
                raise RocLabError(
                    f"/{word}: no such command; /help lists them (for text that begins with /, put a space first)"
                )

    def _save(self, argument: str) -> None:
        if not argument:
            raise RocLabError("/save FILE: name a file")
        try:
            path = Path(argument).expanduser()
        except RuntimeError:
            raise RocLabError(
                f"/save {argument}: there is no such user; write ./{argument} for a folder of that name"
            ) from None
        if path.is_dir():
            raise RocLabError(f"/save {path}: this is a folder; name a file")
        if path.is_file():
            try:
                read_saved(read_json(path))
            except RocLabError:
                raise RocLabError(f"/save {path}: this file is there and no conversation; name another") from None
        try:
            write_json(path, self.conversation.to_dict())
        except (OSError, ValueError) as error:  # ValueError: a name or text that no file can hold
            raise RocLabError(f"/save {path}: {getattr(error, 'strerror', None) or error}") from None
        print(f"{len(self.conversation.turns)} messages in {path}")

    def _stats(self) -> None:
        reply, timings = self.conversation.last, self.conversation.timings
        if reply is None:
            print("Nothing said yet.")
            return
        context = self.conversation.model.config.max_position_embeddings
        print(
            f"read {reply.prompt_tokens} tokens at {timings.prefill_tokens_per_second:.1f}/s, "
            f"wrote {reply.new_tokens} at {timings.decode_tokens_per_second:.1f}/s ({reply.finish_reason}); "
            f"{reply.prompt_tokens + reply.new_tokens:,} of {context:,} tokens of context used"
        )
