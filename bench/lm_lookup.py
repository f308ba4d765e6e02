"""Prompt lookup: tokens per second with and without guesses, in turns, on texts that repeat themselves and on others.

    python bench/lm_lookup.py [--model smollm2-135m] [--runs 5] [--float-activations]

"written" tasks are the model's own answers: rewriting, code, a story, greedy and drawn at temperature 0.8. A small
model soon stops copying, so "edited" tasks make the model write what a better one would answer, token by token: the
request with the text, then the text as corrected by hand. Every text is the same with and without guesses (checked).
The last line is JSON: the gain (ratio of medians) of each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch

from roclab.lm.engine.cpu.runner import CPURunner
from roclab.lm.engine.sampling import SamplingParams
from roclab.lm.generate import Timings, complete
from roclab.lm.weights.checkpoint import open_checkpoint

LETTER = (
    "I recieved you're letter on monday and was very happy to here from you. My brother and me has moved to a new "
    "house near the river. The garden are big, and there is many trees in it. In the morning we can see deers drinking "
    "water. Please come and visit us in the summer when the weather will be more warm."
)
CORRECTED = (
    "I received your letter on Monday and was very happy to hear from you. My brother and I have moved to a new "
    "house near the river. The garden is big, and there are many trees in it. In the morning we can see deer drinking "
    "water. Please come and visit us in the summer when the weather will be warmer."
)
CODE = """def mean(values):
    total = 0
    for value in values:
        total = total + value
    return total / len(values)


def variance(values):
    centre = mean(values)
    total = 0
    for value in values:
        total = total + (value - centre) ** 2
    return total / len(values)


def deviation(values):
    return variance(values) ** 0.5
"""
REQUESTS = {
    "letter": f"Correct the mistakes in this letter:\n\n{LETTER}",
    "code": f"Rename the variable `total` to `sum_so_far` in this Python code:\n\n```python\n{CODE}```",
    "story": "Write a story about a robot who learns to paint.",
    "sea": "What lives in the sea? Answer in a few paragraphs.",
}
EDITED = {"letter": CORRECTED, "code": f"```python\n{CODE.replace('total', 'sum_so_far')}```"}


def rate_edited(model: CPURunner, prompt: list[int], answer: list[int]) -> float:
    """Tokens per second where each next token is given."""
    batch = model.open_batch([prompt], len(answer))
    batch.begin()
    started = time.perf_counter()
    for token_id in answer:
        batch.step([token_id])
    seconds = time.perf_counter() - started
    batch.end()
    return len(answer) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--float-activations", action="store_true")
    options = parser.parse_args()

    checkpoint = open_checkpoint(options.model)
    tokenizer = checkpoint.load_tokenizer()
    model = CPURunner(checkpoint, float_activations=options.float_activations)
    gains = {}
    with torch.inference_mode():
        for kind, name, temperature in (
            *(("edited", name, None) for name in EDITED),
            *(("written", name, t) for t in (0.0, 0.8) for name in REQUESTS),
        ):
            prompt = tokenizer.encode_chat([{"role": "user", "content": REQUESTS[name]}])
            rates: dict[bool, list[float]] = {False: [], True: []}
            texts = set()
            for _ in range(options.runs):
                for model.guessing in (False, True):
                    model.forget()
                    if temperature is None:
                        rates[model.guessing].append(rate_edited(model, prompt, tokenizer.encode(EDITED[name])))
                        continue
                    timings, params = Timings(), SamplingParams(temperature=temperature, max_new_tokens=options.tokens)
                    texts.add(tuple(complete(model, tokenizer, [prompt], params, timings)[0].token_ids))
                    rates[model.guessing].append(timings.decode_tokens_per_second)
            if len(texts) > 1:
                sys.exit(f"{name}: the text differs with guesses")
            plain, guessing = (statistics.median(rates[way]) for way in (False, True))
            label = f"{kind} {name}" + ("" if temperature is None else f" {temperature:g}")
            gains[label] = round(guessing / plain, 3)
            print(f"{label:20} {plain:7.1f} → {guessing:7.1f} tokens/s  {guessing / plain:.2f}×", flush=True)
    print(json.dumps(gains))


if __name__ == "__main__":
    main()
