"""`roclab lm …` and `roclab pull`: the language model."""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from roclab.cli.options import THINKING, options_from
from roclab.cli.output import print_json, show
from roclab.core.exceptions import RocLabError
from roclab.lm.settings import LoadOptions, SamplingParams
from roclab.lm.text.source import read_text

if TYPE_CHECKING:
    import torch

    from roclab.lm.engine.runner import Runner
    from roclab.lm.generate import Completion, TokenEvent
    from roclab.lm.text.tokenizer import Tokenizer
    from roclab.lm.weights.checkpoint import Checkpoint

logger = logging.getLogger(__name__)
app = typer.Typer(help="RocLM, the language model.", no_args_is_help=True)

DEFAULT_NEW_TOKENS = 256
BYTES_A_TOKEN = 16  # more than in any text: what lies beyond in a file is not needed
MODEL = typer.Option(
    "smollm2-135m", "--model", "-m", help="A short name, a path (GGUF file or model folder), or owner/name on a Hub."
)
SYSTEM = typer.Option(None, "--system", help="The system message.")
THINKING_MODE = typer.Option("auto", "--thinking", help="on, off, or auto: as the chat template has it.")


def pull(name: str = typer.Argument(..., help="A short name such as smollm2-135m, or owner/name on a Hub.")) -> None:
    """Fetch a model's weights, once.

    Example: roclab pull smollm2-135m
    """
    from roclab.lm.weights.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(name)  # opened, so that what is fetched is known to be a model
    typer.echo(f"{name}: {checkpoint.path}")


@app.command()
@options_from(LoadOptions, "options")
@options_from(SamplingParams, "params")
def generate(
    params: SamplingParams,
    options: LoadOptions,
    prompt: list[str] = typer.Option(None, "--prompt", "-p", help="The text to continue; repeat it for a batch."),
    prompt_file: Path = typer.Option(
        None, "--prompt-file", help="Read the prompt from a file, - is standard input; a last line end is left out."
    ),
    model: str = MODEL,
    chat: bool = typer.Option(False, "--chat", help="Ask the prompt as a user's message, through the chat template."),
    system: str = SYSTEM,
    thinking: str = THINKING_MODE,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object (a batch: one a line) at the end."),
) -> None:
    """Continue a text, or answer a question with --chat.

    Example: roclab lm generate --model smollm2-135m --chat --prompt "What is gravity? Explain in two sentences."
    """
    from roclab.core.progress import track
    from roclab.lm.generate import Timings, complete, stream
    from roclab.lm.text.detokenizer import END_THINK, THINK

    texts, enable_thinking = _prompts(prompt, prompt_file), _thinking(thinking)
    for flag, given, needs, there in (
        ("--system", system is not None, "--chat", chat),
        ("--thinking", enable_thinking is not None, "--chat", chat),
        ("--logprobs", params.logprobs is not None, "--json", as_json),
    ):
        if given and not there:
            raise RocLabError(f"{flag} needs {needs}")
    runner, tokenizer, load_seconds = open_model(model, options.for_temperature(params.temperature))
    if chat:
        _check_thinking(tokenizer, enable_thinking)
        start = [{"role": "system", "content": system}] if system else []
        asked = [[*start, {"role": "user", "content": text}] for text in texts]
        prompts = [tokenizer.encode_chat(messages, enable_thinking=enable_thinking) for messages in asked]
    else:
        prompts = [tokenizer.encode(text) for text in texts]
    # Each row of a batch draws from a seed of its own, and has its own budget.
    context = runner.config.max_position_embeddings
    budgets = [params.max_new_tokens or max(1, min(DEFAULT_NEW_TOKENS, context - len(ids))) for ids in prompts]
    rows = [replace(params, seed=params.seed + i, max_new_tokens=n) for i, n in enumerate(budgets)]

    timings = Timings()
    if not as_json and len(prompts) == 1:
        marks = {i for name in (THINK, END_THINK) if (i := tokenizer.control.get(name)) is not None}
        hold = chat and bool(marks) and marks.isdisjoint(prompts[0]) and not sys.stdout.isatty()
        _print_stream(stream(runner, tokenizer, prompts, rows, timings), chat, hold)
        return
    total = sum(budgets)
    results = complete(runner, tokenizer, prompts, rows, timings, lambda events: track(events, "tokens", total))
    for text, row, result in zip(texts, rows, results, strict=True):
        if not as_json:
            print(f"> {text}\n{result.text or result.error}\n")
            continue
        speeds = {
            "load_seconds": round(load_seconds, 3),
            "prefill_tokens_per_second": round(timings.prefill_tokens_per_second, 2),
            "decode_tokens_per_second": round(timings.decode_tokens_per_second, 2),
        }
        print_json(_answer(tokenizer, result, row) | speeds)


def _print_stream(events: Iterator[TokenEvent], chat: bool, hold: bool) -> None:
    """The answer on standard output as it comes, the thought on standard error. `hold`: a thought may come unannounced,
    and must not be printed as the answer; the text is kept until that is settled."""
    held, begun = "", False
    for event in events:
        if event.was_thinking:
            print(held if hold else "\n[that was its thinking]", file=sys.stderr)
            held, begun = "", False
        print(event.thinking, end="", flush=True, file=sys.stderr)
        hold = hold and not (event.thinking or event.was_thinking)
        begun = begun or bool(event.text.strip())
        held += event.text if begun or not chat else ""
        if not hold:
            print(held, end="", flush=True)
            held = ""
    print(held)


def _answer(tokenizer: Tokenizer, result: Completion, params: SamplingParams) -> dict[str, Any]:
    """One prompt's answer for --json."""
    answer: dict[str, Any] = {
        "text": result.text,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": len(result.token_ids),
        "finish_reason": result.finish_reason,
        "seed": params.seed,
    }
    if result.error:
        answer["error"] = result.error
    if result.thinking:
        answer["thinking_content"] = result.thinking
    if params.logprobs is not None:
        name, data = (
            tokenizer.id_to_token,
            tokenizer.token_bytes,
        )  # a token may be half a character: its bytes are exact
        chosen = zip(result.token_ids, result.logprobs, result.top_logprobs, strict=True)
        answer["logprobs"] = [
            {"token": name(i), "id": i, "bytes": list(data(i)), "logprob": p,
             "top": [[name(j), q, list(data(j))] for j, q in top]}
            for i, p, top in chosen
        ]  # fmt: skip
    return answer


@app.command()
@options_from(LoadOptions, "options")
@options_from(
    SamplingParams, "params", without=("stop", "logprobs"),
    defaults={"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 512},
)  # fmt: skip
def chat(
    params: SamplingParams,
    options: LoadOptions,
    model: str = MODEL,
    system: str = SYSTEM,
    thinking: str = THINKING_MODE,
    load: Path = typer.Option(
        None, "--load", help="Take up a conversation that /save wrote, or one in OpenAI's format."
    ),
) -> None:
    """Talk to a model. /help inside lists the commands; ctrl-c cuts a reply short, ctrl-d ends.

    Example: roclab lm chat --model smollm2-135m
    """
    from roclab.cli.chat import ChatLoop
    from roclab.core.files import read_json
    from roclab.lm.conversation import Conversation

    enable_thinking = _thinking(thinking)
    saved = read_json(load) if load else None
    runner, tokenizer, _ = open_model(model, options.for_temperature(params.temperature))
    _check_thinking(tokenizer, enable_thinking)
    conversation = Conversation(runner, tokenizer, params, system=system, thinking=enable_thinking)
    loop = ChatLoop(conversation, model)
    if load:
        loop.load(saved, load)
    loop.run()


@app.command()
@options_from(LoadOptions, "options", defaults={"engine": "torch"})
def evaluate(
    options: LoadOptions,
    text: Path = typer.Option(..., "--text", help="A UTF-8 text file; - is standard input."),
    model: str = MODEL,
    window: int = typer.Option(None, "--window", help="Tokens a window; 1024 or the model's context if not given."),
    stride: int = typer.Option(
        None, "--stride", help="Tokens from one window to the next; half a window if not given."
    ),
    max_bytes: int = typer.Option(
        None, "--max-bytes", min=1, help="Only the first bytes of the file (whole characters)."
    ),
    bos_every_window: bool = typer.Option(
        False,
        "--bos-every-window",
        help="Begin each window with a BOS; if not given only the text, if the model wants it.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Perplexity and bits per byte of a text under a model.

    Example: roclab lm evaluate --model smollm2-135m --text wikitext-2/test.txt --max-bytes 50000
    """
    from roclab.lm.evaluate import check_windows, evaluate_text

    check_windows(window, stride)
    content, changes = read_text(text, max_bytes)
    runner, tokenizer, _ = open_model(model, options)
    started = time.perf_counter()
    score = evaluate_text(
        runner, tokenizer, content, window=window, stride=stride, bos_every_window=bos_every_window
    )  # fmt: skip
    seconds = time.perf_counter() - started
    score = replace(score, normalised=[*changes, *score.normalised])
    dtype = str(runner.dtype).removeprefix("torch.") if runner.dtype else "quantized"
    by = {"engine": runner.name, "dtype": dtype, "activations": runner.activations}
    found = {"model": model, "text": text.name, **score.to_dict(), **by, "seconds": round(seconds, 2)}
    lines = [
        f"perplexity     {score.perplexity:.4f}",
        f"bits per byte  {score.bits_per_byte:.4f}",
        f"tokens scored  {score.tokens:,} of {score.bytes:,} bytes in {seconds:.1f} s",
        f"protocol       {score.protocol}",
        f"text           SHA-256 {score.text_sha256}",
    ]
    if score.normalised:
        lines.append(f"normalised     {'; '.join(score.normalised)}")
    if score.vanished_bytes:
        lines.append(f"vanished       {score.vanished_bytes:,} more bytes, which have no token in this vocabulary")
    if score.pretokenized:
        marks = ", ".join(f'"{mark}"' for mark in score.pretokenized)
        lines.append(f"pre-tokenized  its words seem to be taken apart ({marks}): not comparable with the plain text")
    show(found, as_json, "\n".join(lines))


@app.command()
@options_from(LoadOptions, "options", only=("tokenizer",))
def export(
    options: LoadOptions,
    out: Path = typer.Argument(..., help="The folder to write, or with --format gguf the file."),
    model: str = MODEL,
    layout: str = typer.Option("hf", "--format", help="hf: a Hugging Face folder; gguf: a GGUF file of floats."),
    dtype: str = typer.Option(
        "auto", "--dtype", help="float32, bfloat16, float16; auto: as stored, quantized weights as float16."
    ),
) -> None:
    """Write a model for other programs: transformers and vLLM open the folder, llama.cpp the file.

    Example: roclab lm export smollm2 --model smollm2-135m
    """
    from roclab.lm.weights.checkpoint import open_checkpoint
    from roclab.lm.weights.gguf_writer import write_gguf_floats
    from roclab.lm.weights.huggingface_writer import write_huggingface

    writers: dict[str, Callable[..., None]] = {"hf": write_huggingface, "gguf": write_gguf_floats}
    if layout not in writers:
        raise RocLabError(f"--format {layout}: choose one of {', '.join(writers)}")
    checkpoint = open_checkpoint(model)
    tokenizer = checkpoint.load_tokenizer(options.tokenizer)
    writers[layout](out, checkpoint.config, tokenizer, checkpoint.tensors, dtype)
    typer.echo(str(out))


@app.command()
@options_from(LoadOptions, "options", only=("tokenizer", "device"))
def quantize(
    options: LoadOptions,
    out: Path = typer.Argument(..., help="The file to write, such as model-int4.gguf."),
    model: str = MODEL,
    to: str = typer.Option("int4", "--to", help="int4 (calibrated), or int8."),
    calibration: Path = typer.Option(
        None, "--calibration", help="int4: a text like those the model will read; if not given it writes one itself."
    ),
    tokens: int = typer.Option(16384, "--tokens", min=512, help="int4: at most so many tokens of it."),
    seed: int = typer.Option(0, "--seed", max=2**62, help="int4: of the text that the model writes itself."),
    force: bool = typer.Option(False, "--force", help="Replace the file if it is there."),
) -> None:
    """Round a model's weights to int8 or int4 and write them as a GGUF file, for the fast engine and for llama.cpp.

    int4 is calibrated: the rounding keeps what each layer computes on a text near to what it was (GPTQ), which takes
    minutes and loses far less than --quantize int4, which rounds each weight to the nearest step while loading.

    Example: roclab lm quantize qwen3-int4.gguf --model Qwen/Qwen3-0.6B
    """
    from roclab.core.devices import pick_device
    from roclab.lm.engine.cpu.pack import QUANTIZATIONS, is_quantized
    from roclab.lm.quantize import calibration_texts, written_texts
    from roclab.lm.quantize import quantize as write
    from roclab.lm.weights.checkpoint import open_checkpoint

    for wrong, why in (
        (to not in QUANTIZATIONS, f"--to {to}: choose int4 or int8"),
        (to != "int4" and calibration, "--calibration belongs to --to int4; int8 needs none"),
        (out.is_dir(), f"{out} is a folder; name the file to write"),
        (out.suffix != ".gguf", f"{out}: the file is GGUF; give it a name that ends in .gguf"),
        (out.exists() and not force, f"{out} is there already; --force replaces it"),
    ):
        if wrong:
            raise RocLabError(why)
    content = read_text(calibration, BYTES_A_TOKEN * tokens).text if calibration else ""
    device = pick_device(options.device)
    started = time.perf_counter()
    checkpoint = open_checkpoint(model)
    if is_quantized(checkpoint):
        logger.info("%s: quantized already; rounding it again adds to what that lost", model)
    tokenizer = checkpoint.load_tokenizer(options.tokenizer)

    def texts() -> torch.Tensor:
        if calibration is None:
            logger.info("the model writes %s tokens of calibration text", f"{tokens:,}")
            return written_texts(checkpoint, tokenizer, tokens, seed, device)
        return calibration_texts(checkpoint, tokenizer, content, tokens, str(calibration))

    write(checkpoint, tokenizer, out, to, texts, device)
    size, count = out.stat().st_size, sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    typer.echo(
        f"{out}: {size / 1e6:,.0f} MB, {8 * size / count:.1f} bits a weight, in {time.perf_counter() - started:.0f} s"
    )


@app.command()
@options_from(LoadOptions, "options", only=("engine", "quantize"))
def bench(
    options: LoadOptions,
    model: str = MODEL,
    peers: str = typer.Option("", "--peers", help="Also measure llama.cpp, transformers or both, with a comma."),
    peer_python: str = typer.Option(
        None, "--peer-python", help="The Python that has llama-cpp-python, if it is another; or set ROCLAB_PEER_PYTHON."
    ),
    shape: str = typer.Option(
        None, "--random", help="Instead of --model, random weights: qwen3-0.6b:int8 or qwen3-0.6b:int4."
    ),
    repeats: int = typer.Option(3, "--repeats", min=1, max=100, help="Each figure is the median of as many."),
    quick: bool = typer.Option(False, "--quick", help="Leave out the long prompts."),
    as_json: bool = typer.Option(False, "--json", help="Print all measurements as one JSON object."),
) -> None:
    """Measure loading, prefill, decode, batches and memory, with the share of this machine's limits. The last line is
    JSON with the six figures that sum it up.

    Example: roclab lm bench --model smollm2-135m --peers llama.cpp
    """
    from roclab_bench.lm import PEERS, table
    from roclab_bench.lm import bench as measure

    from roclab.lm.weights.checkpoint import open_checkpoint

    wanted = [name.strip() for name in peers.split(",") if name.strip()]
    if unknown := sorted(set(wanted) - set(PEERS)):
        raise RocLabError(f"--peers {', '.join(unknown)}: choose among {', '.join(PEERS)}")
    python = peer_python or os.environ.get("ROCLAB_PEER_PYTHON") or sys.executable
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        if shape:
            from roclab_bench.random_model import write_random

            logger.info("writing random weights of %s", shape)
            write_random(path, shape)
        checkpoint = open_checkpoint(path if shape else model)
        if "llama.cpp" in wanted and checkpoint.path.suffix != ".gguf":
            raise RocLabError("--peers llama.cpp: it reads GGUF files only, and this model is none")
        result = measure(
            str(checkpoint.path), min(checkpoint.config.vocab_size, 40000), checkpoint.config.max_position_embeddings,
            peers=wanted, peer_python=python, engine=options.engine, quantize=options.quantize, repeats=repeats,
            quick=quick,
        )  # fmt: skip
    result = {"model": shape or model, **result}
    show(result, as_json, table(result))
    if not as_json:
        print_json(result["summary"])


def open_model(name: str | Checkpoint, options: LoadOptions) -> tuple[Runner, Tokenizer, float]:
    """Runner, tokenizer and the seconds it took to load them; importing torch is not counted."""
    if sys.stderr.isatty():  # before the imports, which take seconds: a person should see that something happens
        logger.info("opening %s", getattr(name, "path", name))
    from roclab.lm.loading import load

    started = time.perf_counter()
    return *load(name, **vars(options)), time.perf_counter() - started


def _thinking(word: str) -> bool | None:
    if word not in THINKING:
        raise RocLabError(f"--thinking {word}: choose on, off or auto")
    return THINKING[word]


def _check_thinking(tokenizer: Tokenizer, enable_thinking: bool | None) -> None:
    if enable_thinking is not None and not tokenizer.has_thinking:
        raise RocLabError("--thinking: this model's chat template has no switch for thinking; leave it at auto")


def _prompts(prompts: list[str] | None, file: Path | None) -> list[str]:
    if bool(prompts) == (file is not None):
        raise RocLabError("give the prompt with --prompt or with --prompt-file")
    if file is None:
        return list(prompts or [])
    return [read_text(file).text.removesuffix("\n")]  # the end of the last line, which editors and echo add
