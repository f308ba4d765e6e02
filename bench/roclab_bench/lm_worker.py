"""One program under measurement, in a process of its own: RocLM, llama.cpp or transformers.

    python lm_worker.py llama.cpp MODEL.gguf '{"threads": 1, "context": 2304}'

Reads one JSON task a line and answers each with one line, `{"seconds": …}`; the first line it writes says how long
loading took. It needs the library it measures and nothing of RocLab for a peer, which may live in another environment.
Every kind offers the same calls: `prefill(ids)` up to the logits after the last token, `decode(ids, n)` (the seconds of
n greedy steps behind a prompt, reading it not counted) and `batch(prompts, n)`; RocLM also `machine()`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any


class RocLM:
    def __init__(self, path: str, options: dict[str, Any]):
        from roclab.lm.engine.cpu.runner import CPURunner
        from roclab.lm.loading import load  # imported by `main` already

        self.kernels = CPURunner
        self.model, self.tokenizer = load(path, options["engine"], quantize=options.get("quantize"))
        self.notes: dict[str, Any] = {"engine": "torch"}
        if isinstance(self.model, CPURunner):
            self.notes = {
                "engine": f"fast ({self.model.path})",
                "weight_bytes": self.model.weight_bytes,
            }

    def _run(self, prompts: list[list[int]], n: int) -> tuple[float, float]:
        from roclab.lm.generate import Timings, complete, engine_of
        from roclab.lm.settings import SamplingParams

        engine = engine_of(self.model)
        engine.prompt_lookup = False
        engine.cache.clear()  # no prompt is half computed already
        timings = Timings()
        complete(self.model, self.tokenizer, prompts, SamplingParams(max_new_tokens=n, ignore_eos=True), timings)
        return timings.prefill_seconds, timings.decode_seconds

    def prefill(self, ids: list[int]) -> float:
        return sum(self._run([ids], 1))

    def decode(self, ids: list[int], n: int) -> float:
        return self._run([ids], n + 1)[1]

    def batch(self, prompts: list[list[int]], n: int) -> float | None:
        return self._run(prompts, n + 1)[1]

    def machine(self) -> dict[str, float] | None:
        if not isinstance(self.model, self.kernels):
            return None
        threads = {"threads": self.model.most_threads, "writing_threads": self.model.threads}  # found out by now
        return {**self.model.machine(), **threads}


class LlamaCpp:
    def __init__(self, path: str, options: dict[str, Any]):
        os.environ["OMP_WAIT_POLICY"] = "passive"  # where cores are shared, spinning threads collapse
        import llama_cpp.llama
        import numpy

        if options.get("plain_buffers"):  # its AMX path crashes on some machines
            defaults = llama_cpp.llama_cpp.llama_model_default_params

            def without_repacking() -> Any:
                params = defaults()
                params.use_extra_bufts = False
                return params

            llama_cpp.llama.llama_cpp.llama_model_default_params = without_repacking
        threads = options["threads"]
        self.llama = llama_cpp.Llama(
            path, n_ctx=options["context"], n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.library, self.numpy = llama_cpp, numpy
        self.notes = {"version": llama_cpp.__version__, "threads": threads}

    def _best(self) -> int:
        logits = self.library.llama_get_logits_ith(self.llama.ctx, -1)
        return int(self.numpy.ctypeslib.as_array(logits, (self.llama.n_vocab(),)).argmax())

    def prefill(self, ids: list[int]) -> float:
        self.llama.reset()
        started = time.perf_counter()
        self.llama.eval(ids)
        self._best()
        return time.perf_counter() - started

    def decode(self, ids: list[int], n: int) -> float:
        self.llama.reset()
        self.llama.eval(ids)
        started = time.perf_counter()
        for _ in range(n):
            self.llama.eval([self._best()])
        return time.perf_counter() - started

    def batch(self, prompts: list[list[int]], n: int) -> float | None:
        return self.decode(prompts[0], n) if len(prompts) == 1 else None


class Transformers:
    def __init__(self, path: str, options: dict[str, Any]):
        os.environ["OMP_WAIT_POLICY"] = "passive"
        import torch
        import transformers

        folder, file = os.path.split(path)
        arguments = {"gguf_file": file} if file.endswith(".gguf") else {}
        source = folder if arguments else path
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **arguments).eval()
        self.notes = {"version": transformers.__version__, "threads": torch.get_num_threads()}

    def _run(self, prompts: list[list[int]], n: int) -> tuple[float, float]:
        torch = self.torch
        with torch.inference_mode():
            started = time.perf_counter()
            out = self.model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            read = time.perf_counter()
            for _ in range(n):
                out = self.model(token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1].argmax(-1, keepdim=True)
        return read - started, time.perf_counter() - read

    def prefill(self, ids: list[int]) -> float:
        return self._run([ids], 0)[0]

    def decode(self, ids: list[int], n: int) -> float:
        return self._run([ids], n)[1]

    def batch(self, prompts: list[list[int]], n: int) -> float | None:
        return self._run(prompts, n)[1]


KINDS: dict[str, Any] = {"roclab": RocLM, "llama.cpp": LlamaCpp, "transformers": Transformers}


def main() -> None:
    kind, path, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))  # where our gguf.py would pass for the gguf package
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr
    # Imports are not loading.
    if kind == "llama.cpp":
        import llama_cpp  # noqa: F401
    else:
        import torch

        if kind == "roclab":
            import roclab.lm.loading  # noqa: F401
        if options.get("torch_threads"):
            torch.set_num_threads(options["torch_threads"])
    started = time.perf_counter()
    program = KINDS[kind](path, options)
    loaded = time.perf_counter() - started
    # Cold: the very first thing it computes.
    first = program.prefill(options["first_prompt"])
    print(json.dumps({"seconds": loaded, "first": first, **program.notes}), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        name = task.pop("do")
        if name == "peak":  # kilobytes on Linux, bytes on macOS
            unit = 1 if sys.platform == "darwin" else 1024
            answer: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        else:
            answer = getattr(program, name)(**task)
        print(json.dumps({"seconds": answer}), file=answers, flush=True)


if __name__ == "__main__":
    main()
