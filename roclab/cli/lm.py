"""`roclab lm …` and `roclab pull`: the language model."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from roclab.cli.output import print_json
from roclab.core.exceptions import DataError, RocLabError

if TYPE_CHECKING:
    from roclab.lm.engine.runner import Runner
    from roclab.lm.text.tokenizer import Tokenizer

app = typer.Typer(help="RocLM, the language model.", no_args_is_help=True)

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_NEW_TOKENS = 256
MODEL = typer.Option(
    DEFAULT_MODEL, "--model", "-m", help="A short name, a path (GGUF file or model folder), or owner/name on a Hub."
)
TOKENIZER = typer.Option(
    None, "--tokenizer", help="A folder with tokenizer.json, if it does not lie beside the weights."
)
DTYPE = typer.Option("float32", "--dtype", help="float32, bfloat16 or float16.")
DEVICE = typer.Option("auto", "--device", help="cpu, cuda, cuda:1, mps, …; auto takes a GPU where there is one.")
ENGINE = typer.Option(
    "auto",
    "--engine",
    help="fast (quantized CPU kernels), torch, compiled (torch.compile, for GPUs), or auto: fast where it fits.",
)
EVALUATION_ENGINE = typer.Option("torch", "--engine", help="torch, the exact one; or fast, to see what it loses.")
QUANTIZE = typer.Option(None, "--quantize", help="Round float weights to int8 or int4, for the fast engine.")
FLOAT_ACTIVATIONS = typer.Option(
    None,
    "--float-activations/--int8-activations",
    help="Fast engine: whether activations stay floats (slower, and at temperature 0 the words of --engine torch) "
    "or are rounded to int8; by default floats at temperature 0.",
)
INT8_ACTIVATIONS = typer.Option(
    False, "--float-activations", help="Fast engine: no rounding of activations to int8; slower, nearest to torch."
)
THREADS = typer.Option(None, "--threads", min=1, max=64, help="Fast engine: by default the fastest number is found.")
TEMPERATURE = typer.Option(0.0, "--temperature", "-t", help="0 takes the most likely token.")
TOP_K = typer.Option(0, "--top-k", help="Choose among the k most likely tokens; 0: all.")
TOP_P = typer.Option(1.0, "--top-p", help="Choose among the most likely tokens that make up this probability.")
MIN_P = typer.Option(0.0, "--min-p", help="Drop tokens less likely than this share of the most likely one.")
REPETITION = typer.Option(1.0, "--repetition-penalty", help="Above 1: what was said becomes less likely.")
SEED = typer.Option(0, "--seed", help="The same seed gives the same text.")
SYSTEM = typer.Option(None, "--system", help="The system message.")
THINKING = typer.Option("auto", "--thinking", help="on, off, or auto: as the chat template has it.")


def say(message: str) -> None:
    print(message, file=sys.stderr)


def pull(name: str = typer.Argument(..., help="A short name such as smollm2-135m, or owner/name on a Hub.")) -> None:
    """Fetch a model's weights, once.

    Example: roclab pull smollm2-135m
    """
    from roclab.lm.weights.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(name, say)  # opened, so that what is fetched is known to be a model
    typer.echo(f"{name}: {checkpoint.path}")


@app.command()
def generate(
    prompt: list[str] = typer.Option(None, "--prompt", "-p", help="The text to continue; repeat it for a batch."),
    prompt_file: Path = typer.Option(
        None, "--prompt-file", help="Read the prompt from a file, - is standard input; a last line end is left out."
    ),
    model: str = MODEL,
    tokenizer_path: Path = TOKENIZER,
    chat: bool = typer.Option(False, "--chat", help="Ask the prompt as a user's message, through the chat template."),
    system: str = SYSTEM,
    thinking: str = THINKING,
    max_new_tokens: int = typer.Option(
        None,
        "--max-new-tokens",
        "-n",
        help="At most this many new tokens; if not given 256, or what the context holds.",
    ),
    temperature: float = TEMPERATURE,
    top_k: int = TOP_K,
    top_p: float = TOP_P,
    min_p: float = MIN_P,
    repetition_penalty: float = REPETITION,
    seed: int = SEED,
    stop: list[str] = typer.Option(None, "--stop", help="End before this text; may be repeated."),
    logprobs: int = typer.Option(None, "--logprobs", help="With --json: log-probabilities and the N best tokens."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object (a batch: one a line) at the end."),
    dtype: str = DTYPE,
    device: str = DEVICE,
    engine: str = ENGINE,
    quantize: str = QUANTIZE,
    float_activations: bool | None = FLOAT_ACTIVATIONS,
    threads: int = THREADS,
) -> None:
    """Continue a text, or answer a question with --chat.

    Example: roclab lm generate --model smollm2-135m --chat --prompt "What is gravity? Explain in two sentences."
    """
    from dataclasses import replace

    from roclab.core.progress import track
    from roclab.lm.generate import Timings, complete, stream
    from roclab.lm.settings import SamplingParams

    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        seed=seed, max_new_tokens=max_new_tokens, stop=tuple(stop or ()), logprobs=logprobs,
    )  # fmt: skip
    texts = _prompts(prompt, prompt_file)
    enable_thinking = _thinking(thinking)
    for flag, given, needs, there in (
        ("--system", system is not None, "--chat", chat),
        ("--thinking", enable_thinking is not None, "--chat", chat),
        ("--logprobs", logprobs is not None, "--json", as_json),
    ):
        if given and not there:
            raise RocLabError(f"{flag} needs {needs}")
    language_model, tokenizer, load_seconds = _load(
        model, tokenizer_path, dtype, device, engine, quantize, _exact(float_activations, temperature), threads
    )
    if chat:
        _check_thinking(tokenizer, enable_thinking)
        start = [{"role": "system", "content": system}] if system else []
        prompts = [
            tokenizer.encode_chat([*start, {"role": "user", "content": t}], enable_thinking=enable_thinking)
            for t in texts
        ]
    else:
        prompts = [tokenizer.encode(text) for text in texts]
    if max_new_tokens is None:
        room = language_model.config.max_position_embeddings - max(map(len, prompts))
        params = replace(params, max_new_tokens=max(1, min(DEFAULT_NEW_TOKENS, room)))

    timings = Timings()
    if not as_json and len(prompts) == 1:
        begun = False
        for event in stream(language_model, tokenizer, prompts, params, timings):
            print(event.thinking, end="", flush=True, file=sys.stderr)  # a thought is not the answer
            begun = begun or bool(event.text.strip())
            print(event.text if begun or not chat else "", end="", flush=True)
        print()
        return
    most = (params.max_new_tokens or 1) * len(prompts)
    results = complete(
        language_model, tokenizer, prompts, params, timings, progress=lambda events: track(events, "tokens", most)
    )
    for row, (text, result) in enumerate(zip(texts, results, strict=True)):
        if not as_json:
            print(f"> {text}\n{result.text}\n")
            continue
        answer: dict[str, Any] = {
            "text": result.text,
            "prompt_tokens": result.prompt_tokens,
            "new_tokens": len(result.token_ids),
            "finish_reason": result.finish_reason,
            "seed": seed + row,  # each row of a batch draws from a seed of its own
            "load_seconds": round(load_seconds, 3),
            "prefill_tokens_per_second": round(timings.prefill_tokens_per_second, 2),
            "decode_tokens_per_second": round(timings.decode_tokens_per_second, 2),
        }
        if result.thinking:
            answer["thinking_content"] = result.thinking
        if logprobs is not None:
            answer["logprobs"] = [
                {
                    "token": tokenizer.id_to_token(i),
                    "id": i,
                    "logprob": p,
                    "top": [[tokenizer.id_to_token(j), q] for j, q in top],
                }
                for i, p, top in zip(result.token_ids, result.logprobs, result.top_logprobs, strict=True)
            ]
        print_json(answer)


@app.command()
def chat(
    model: str = MODEL,
    tokenizer_path: Path = TOKENIZER,
    system: str = SYSTEM,
    thinking: str = THINKING,
    load: Path = typer.Option(None, "--load", help="Take up a conversation that /save wrote."),
    max_new_tokens: int = typer.Option(512, "--max-new-tokens", "-n", help="At most this many tokens a reply."),
    temperature: float = typer.Option(0.6, "--temperature", "-t", help="0 takes the most likely token."),
    top_k: int = TOP_K,
    top_p: float = typer.Option(0.95, "--top-p", help="Choose among the likeliest tokens up to this probability."),
    min_p: float = MIN_P,
    repetition_penalty: float = REPETITION,
    seed: int = SEED,
    dtype: str = DTYPE,
    device: str = DEVICE,
    engine: str = ENGINE,
    quantize: str = QUANTIZE,
    float_activations: bool | None = FLOAT_ACTIVATIONS,
    threads: int = THREADS,
) -> None:
    """Talk to a model. /help inside lists the commands; ctrl-c cuts a reply short, ctrl-d ends.

    Example: roclab lm chat --model smollm2-135m
    """
    from roclab.cli.chat import ChatLoop
    from roclab.lm.conversation import Conversation
    from roclab.lm.settings import SamplingParams

    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        seed=seed, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    enable_thinking = _thinking(thinking)
    language_model, tokenizer, _ = _load(
        model, tokenizer_path, dtype, device, engine, quantize, _exact(float_activations, temperature), threads
    )
    _check_thinking(tokenizer, enable_thinking)
    conversation = Conversation(language_model, tokenizer, params, system=system, thinking=enable_thinking)
    loop = ChatLoop(conversation, model)
    if load:
        loop.load(load)
    loop.run()


@app.command()
def evaluate(
    text: Path = typer.Option(..., "--text", help="A UTF-8 text file."),
    model: str = MODEL,
    tokenizer_path: Path = TOKENIZER,
    window: int = typer.Option(None, "--window", help="Tokens a window; 1024 or the model's context if not given."),
    stride: int = typer.Option(
        None, "--stride", help="Tokens from one window to the next; half a window if not given."
    ),
    max_bytes: int = typer.Option(
        None, "--max-bytes", min=1, help="Only the first bytes of the file (whole characters)."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
    dtype: str = DTYPE,
    device: str = DEVICE,
    engine: str = EVALUATION_ENGINE,
    quantize: str = QUANTIZE,
    float_activations: bool = INT8_ACTIVATIONS,
    threads: int = THREADS,
) -> None:
    """Perplexity and bits per byte of a text under a model.

    Example: roclab lm evaluate --model smollm2-135m --text wikitext-2/test.txt --max-bytes 50000
    """
    from roclab.core.progress import track
    from roclab.lm.evaluate import evaluate_text

    content = read_text(text, max_bytes)
    language_model, tokenizer, _ = _load(
        model, tokenizer_path, dtype, device, engine, quantize, float_activations or None, threads
    )
    started = time.perf_counter()
    score = evaluate_text(
        language_model, tokenizer, content, window=window, stride=stride, progress=lambda w: track(w, "windows")
    )
    seconds = time.perf_counter() - started
    if as_json:
        print_json({"model": model, "text": text.name, **score.to_dict(), "seconds": round(seconds, 2)})
    else:
        typer.echo(f"perplexity     {score.perplexity:.4f}")
        typer.echo(f"bits per byte  {score.bits_per_byte:.4f}")
        typer.echo(f"tokens scored  {score.tokens:,} of {score.bytes:,} bytes in {seconds:.1f} s")
        typer.echo(f"protocol       {score.protocol}")


def _load(
    name: str,
    tokenizer_path: Path | None,
    dtype: str,
    device: str,
    engine: str = "torch",
    quantize: str | None = None,
    exact: bool | None = None,
    threads: int | None = None,
) -> tuple[Runner, Tokenizer, float]:
    """Model, tokenizer and the seconds it took to open them; importing torch is not counted."""
    if sys.stderr.isatty():  # before the imports, which take seconds: a person should see that something happens
        say(f"opening {name}")
    import torch

    from roclab.lm.engine.cpu.runner import CPURunner
    from roclab.lm.load import open_model
    from roclab.lm.weights.checkpoint import open_checkpoint

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in dtypes:
        raise RocLabError(f"--dtype {dtype}: choose one of {', '.join(dtypes)}")
    device = device_named(device)
    started = time.perf_counter()
    checkpoint = open_checkpoint(name, say)
    model = open_model(
        checkpoint, engine, dtype=dtypes[dtype], device=device, quantize=quantize, exact=exact, threads=threads
    )
    tokenizer = checkpoint.load_tokenizer(tokenizer_path)  # while the kernels lay out the weights
    if isinstance(model, CPURunner):
        model.wait()
    return model, tokenizer, time.perf_counter() - started


def device_named(name: str) -> str:
    """The device of --device; auto is CUDA where there is a GPU of that kind, else the CPU, whose kernels are fast.
    Raises RocLabError if it cannot be used here."""
    import torch

    from roclab.core.devices import usable_device

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    usable_device(name)
    return name


def _exact(float_activations: bool | None, temperature: float) -> bool | None:
    """Whether the fast engine keeps activations as floats; None: as it likes. Who asks for the likeliest text should
    get the model's own: between two words almost alike, int8's rounding decides, and that differs between
    processors."""
    return True if float_activations is None and temperature == 0 else float_activations


def _thinking(word: str) -> bool | None:
    choices = {"on": True, "off": False, "auto": None}
    if word not in choices:
        raise RocLabError(f"--thinking {word}: choose on, off or auto")
    return choices[word]


def _check_thinking(tokenizer: Tokenizer, enable_thinking: bool | None) -> None:
    if enable_thinking is not None and not tokenizer.has_thinking:
        raise RocLabError("--thinking: this model's chat template has no switch for thinking; leave it at auto")


def _prompts(prompts: list[str] | None, file: Path | None) -> list[str]:
    if bool(prompts) == (file is not None):
        raise RocLabError("give the prompt with --prompt or with --prompt-file")
    if file is None:
        return list(prompts or [])
    text = sys.stdin.read() if str(file) == "-" else read_text(file)
    return [text.removesuffix("\n").removesuffix("\r")]  # the end of the last line, which editors and echo add


def read_text(path: Path, max_bytes: int | None = None) -> str:
    """A file's text; a character that `max_bytes` would cut in half is left out."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if max_bytes is not None and max_bytes < len(data):
        while max_bytes > 0 and data[max_bytes] & 0xC0 == 0x80:  # inside a character
            max_bytes -= 1
        data = data[:max_bytes]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
