"""How fast this machine runs a model, beside its peers and beside the machine's own limits.

Every program runs in a process of its own (`lm_worker.py`) and is asked in turns, task by task, so that whatever
else the machine does meets all of them alike; a figure is the median of its repeats. llama.cpp is run with one thread
and with two, and its better figure counts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.progress import track
from roclab.lm.engine.cpu.build import load_library

logger = logging.getLogger(__name__)

PEERS = ("llama.cpp", "transformers")
PREFILLS, CONTEXTS, BATCHES = (128, 512, 2048), (100, 2000), (1, 4, 16)
STEPS = 32  # tokens of a decode measurement
BATCH_PROMPT = 32


class Program:
    """A worker process. `ask(task, **arguments)` → seconds; `starts` is what each start said."""

    def __init__(self, name: str, kind: str, python: str, model: str, options: dict[str, Any]):
        self.name = name
        self.starts: list[dict[str, Any]] = []
        worker = Path(__file__).with_name("lm_worker.py")
        self._command = [python, str(worker), kind, model, json.dumps(options)]
        self._begin()

    def _begin(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.starts.append(self._answer())

    def restart(self) -> None:
        """A new process in place of this one, as loading is measured once in each."""
        self.close()
        self._begin()

    def start(self, what: str) -> float:
        """The median over the starts, in seconds: "seconds" of loading, or the "first" prompt after it."""
        return statistics.median(start[what] for start in self.starts)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, errors = self._process.communicate()
            last = errors.strip().splitlines()[-1] if errors.strip() else f"exit code {self._process.returncode}"
            last = last.removeprefix(f"{RocLabError.__module__}.{RocLabError.__name__}: ")
            raise RocLabError(f"{self.name} failed: {last}")
        return json.loads(line)

    def ask(self, task: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its last words are in _answer
            print(json.dumps({"do": task, **arguments}), file=self._process.stdin, flush=True)
        return self._answer()["seconds"]

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.stdin.close()  # type: ignore[union-attr]
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()


def bench(
    model: str,
    vocabulary: int,
    context: int,
    *,
    peers: Sequence[str] = (),
    peer_python: str = sys.executable,
    engine: str = "auto",
    quantize: str | None = None,
    repeats: int = 3,
    quick: bool = False,
) -> dict[str, Any]:
    """Measure `model` (a path). `context` bounds the prompt lengths; `quick` leaves out the long ones.

    Returns the measurements by program, the machine's limits, and the six figures of the summary line (None where a
    peer was not measured). A peer that does not run, or dies, is reported and left out; RocLM itself raises.
    """
    draw = random.Random(0)

    def ids(n: int) -> list[int]:  # random tokens: no text that repeats itself, so no token can be drafted
        return [draw.randrange(vocabulary) for _ in range(n)]

    prefills = [n for n in PREFILLS if n + 1 <= context and (n <= 512 or not quick)]
    contexts = [n for n in CONTEXTS if n + STEPS + 1 <= context and (n <= 512 or not quick)]
    longest = min(context, max([*prefills, *(n + STEPS for n in contexts)], default=0) + 64)
    first = ids(64)
    programs: list[Program] = []
    notes: list[str] = []
    try:
        load_library()  # compiling is not loading: it happens once
        options: dict[str, Any] = {"engine": engine, "quantize": quantize, "first_prompt": first}
        programs.append(Program("roclab", "roclab", sys.executable, model, options))
        wanted: list[tuple[str, str, str, dict[str, Any]]] = []
        if "transformers" in peers:
            wanted.append(("transformers", "transformers", sys.executable, {}))
        if "llama.cpp" in peers:
            for threads in (1, 2):
                wanted.append((f"llama.cpp ({threads})", "llama.cpp", peer_python, {"threads": threads}))
        for name, kind, python, options in wanted:
            options = {**options, "context": longest, "first_prompt": first}
            try:
                programs.append(Program(name, kind, python, model, options))
            except RocLabError as error:
                try:
                    if kind != "llama.cpp":
                        raise
                    programs.append(Program(name, kind, python, model, {**options, "plain_buffers": True}))
                    _note(notes, f"{name} crashed with its repacked weights and runs without them")
                except RocLabError:
                    _note(notes, str(error))
        for _ in range(repeats - 1):
            _each(programs, notes, lambda program: program.restart())
        tasks: list[tuple[str, str, dict[str, Any]]] = [("ttft 64", "prefill", {"ids": first})]
        tasks += [(f"prefill {n}", "prefill", {"ids": ids(n)}) for n in prefills]
        tasks += [(f"decode at {n}", "decode", {"ids": ids(n), "n": STEPS}) for n in contexts]
        for rows in BATCHES:
            prompts = [ids(BATCH_PROMPT) for _ in range(rows)]
            tasks.append((f"batch {rows}", "batch", {"prompts": prompts, "n": STEPS}))
        times: dict[str, dict[str, list[float]]] = {p.name: {name: [] for name, _, _ in tasks} for p in programs}
        rounds = [(name, task, arguments) for _ in range(repeats) for name, task, arguments in tasks]
        for name, task, arguments in track(rounds, "measuring"):
            answers = _each(programs, notes, lambda program: program.ask(task, **arguments))  # noqa: B023
            for program, seconds in answers.items():
                times[program][name] += [] if seconds is None else [seconds]
        peaks = _each(programs, notes, lambda program: program.ask("peak"))
        measured = {
            program.name: {
                **_figures(times[program.name]),
                "load_seconds": program.start("seconds"),
                "ttft_cold_ms": 1e3 * (program.start("seconds") + program.start("first")),
                "peak_bytes": peaks[program.name],
                **{k: v for k, v in program.starts[-1].items() if k not in ("seconds", "first")},
            }
            for program in programs
        }
        if limits := programs[0].ask("machine"):
            measured["roclab"] |= {key: limits.pop(key) for key in ("threads", "writing_threads")}
    finally:
        for program in programs:
            program.close()
    return {"programs": measured, "machine": limits, "notes": notes, "summary": _summary(measured, limits)}


def _note(notes: list[str], note: str) -> None:
    notes.append(note)
    logger.info(note)


def _each(programs: list[Program], notes: list[str], act: Callable[[Program], Any]) -> dict[str, Any]:
    """What each program answers, by its name. A peer that dies is noted and taken off; RocLM's error is raised."""
    answers = {}
    for program in list(programs):
        try:
            answers[program.name] = act(program)
        except RocLabError as error:
            if program is programs[0]:
                raise
            _note(notes, str(error))
            programs.remove(program)
    return answers


def _figures(times: dict[str, list[float]]) -> dict[str, float]:
    """Medians as rates: tokens a second; the time to the first token in milliseconds."""
    figures = {}
    for name, all_seconds in times.items():
        if not all_seconds:
            continue
        seconds = statistics.median(all_seconds)
        kind, _, number = name.partition(" ")
        if kind == "ttft":
            figures["ttft_warm_ms"] = 1e3 * seconds
        else:
            tokens = {"prefill": int(number) if kind == "prefill" else 0, "decode": STEPS}.get(kind)
            figures[name] = (tokens if tokens is not None else STEPS * int(number)) / seconds
    return figures


def _summary(measured: dict[str, dict[str, Any]], limits: dict[str, float] | None) -> dict[str, float | None]:
    ours = measured["roclab"]
    llama = [figures for name, figures in measured.items() if name.startswith("llama.cpp")]

    def ratio(key: str) -> float | None:
        peer = max((figures[key] for figures in llama if key in figures), default=None)
        return round(ours[key] / peer, 3) if peer and key in ours else None

    share = None
    if limits and ours.get("weight_bytes") and "decode at 100" in ours:
        share = round(ours["weight_bytes"] * ours["decode at 100"] / limits["bandwidth"], 3)
    return {
        "decode_ratio_llamacpp": ratio("decode at 100"),
        "prefill_ratio_llamacpp": ratio("prefill 512"),
        "decode_bandwidth_share": share,
        "load_seconds": round(ours["load_seconds"], 3),
        "ttft_warm_ms": round(ours["ttft_warm_ms"], 1),
        "batch16_throughput": round(ours["batch 16"], 1),
    }


def table(result: dict[str, Any]) -> str:
    """The measurements in plain columns, one program each."""
    programs = result["programs"]
    rows = [
        ("load, s", "load_seconds", 1, ".2f"), ("first token cold, ms", "ttft_cold_ms", 1, ".0f"),
        ("first token warm (64 tokens), ms", "ttft_warm_ms", 1, ".0f"),
        *((f"prefill {n:,} tokens, tokens/s", f"prefill {n}", 1, ".0f") for n in PREFILLS),
        *((f"decode at {n:,} of context, tokens/s", f"decode at {n}", 1, ".1f") for n in CONTEXTS),
        *((f"decode {n} sequences, tokens/s", f"batch {n}", 1, ".1f") for n in BATCHES),
        ("peak memory, MB", "peak_bytes", 1e-6, ".0f"), ("threads", "threads", 1, ".0f"),
    ]  # fmt: skip
    lines = [" " * 36 + "".join(f"{name:>16}" for name in programs)]
    for label, key, factor, form in rows:
        cells = [figures.get(key) for figures in programs.values()]
        if any(cell is not None for cell in cells):
            lines.append(
                f"{label:<36}" + "".join("–".rjust(16) if c is None else f"{c * factor:16{form}}" for c in cells)
            )
    few = programs["roclab"].get("writing_threads")
    lines.append(f"RocLM ran on {programs['roclab']['engine']}" + (f"; {few} of the threads decode." if few else "."))
    if limits := result["machine"]:
        share = result["summary"]["decode_bandwidth_share"]
        lines.append(
            f"This machine reads {limits['bandwidth'] / 1e9:.1f} GB/s and computes {limits['flops'] / 1e9:.0f} GFLOP/s "
            f"(float32). A token reads {programs['roclab']['weight_bytes'] / 1e6:.1f} MB of weights"
            + (f"; decode uses {share:.0%} of the memory's speed." if share is not None else ".")
        )
    lines += result["notes"]
    return "\n".join(lines)
