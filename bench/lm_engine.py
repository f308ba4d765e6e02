"""The engine under load: how long running requests wait for their next token while a long prompt joins them.

    python bench/lm_engine.py [--model smollm2-135m] [--running 8] [--prompt 2000] [--slowdowns 1.5,2]

Requests are decoded together; then the prompt is submitted. For each `max_slowdown` of the engine it prints the median
gap between the others' tokens in 40 steps before and 40 after (their contexts grow meanwhile), the median, 99th
percentile and longest gap while the prompt is computed, the last two also as multiples of the usual, the longest of as
many gaps without a prompt afterwards (what the machine does by itself), and the seconds to the prompt's first token.
An answer is compared with the one it has alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from roclab.lm.engine.scheduler import Engine, Request
from roclab.lm.loading import load
from roclab.lm.settings import SamplingParams
from roclab.lm.weights.checkpoint import open_checkpoint


def gaps(engine: Engine, done: Request | None, steps: int) -> list[float]:
    """Seconds of each step, until `done` has its first token or for so many steps."""
    seconds = []
    while (done.new_tokens == 0) if done else len(seconds) < steps:
        started = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--engine", default="auto", help="fast or torch")
    parser.add_argument("--running", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=2000, help="tokens of the prompt that joins")
    parser.add_argument("--slowdowns", default="1.5,2,3")
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.model)
    runner, tokenizer = load(checkpoint, options.engine)
    params = SamplingParams(max_new_tokens=4000, ignore_eos=True)  # they outlast the prompt
    prompts = [
        tokenizer.encode(f"Chapter {i}. " + "Once upon a time there was a robot. " * 4) for i in range(options.running)
    ]
    long = [(i * 7919) % 40000 + 100 for i in range(options.prompt)]

    result: dict[str, dict[str, float]] = {}
    for slowdown in map(float, options.slowdowns.split(",")):
        engine = Engine(runner, max_slowdown=slowdown, cache_bytes=0)
        requests = [engine.submit(prompt, params) for prompt in prompts]
        while any(request.new_tokens < 20 for request in requests):
            engine.step()
        before = gaps(engine, None, 40)
        started = time.perf_counter()
        joined = engine.submit(long, SamplingParams(max_new_tokens=1))
        beside = gaps(engine, joined, 0)
        waited = time.perf_counter() - started
        without = gaps(engine, None, len(beside))
        usual = statistics.median(before + without[:40])
        result[str(slowdown)] = {
            "usual_ms": round(1e3 * usual, 2),
            "median_ms": round(1e3 * statistics.median(beside), 2),
            "longest_ms": round(1e3 * max(beside), 2),
            "steps": len(beside),
            "p99_ratio": round(sorted(beside)[int(0.99 * len(beside))] / usual, 2),
            "longest_ratio": round(max(beside) / usual, 2),
            "longest_without_ratio": round(max(without) / usual, 2),
            "seconds_to_first_token": round(waited, 2),
        }
        print(slowdown, result[str(slowdown)], flush=True)
        reference = Engine(runner, prompt_lookup=False)
        alone = reference.submit(prompts[0], SamplingParams(max_new_tokens=30, ignore_eos=True))
        while not alone.done:
            reference.step()
        if requests[0].ids[: len(alone.ids)] != alone.ids:
            raise SystemExit("an answer differs from the one alone")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
