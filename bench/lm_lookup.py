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
from collections.abc import Sequence

import torch

from roclab.lm.engine.cpu.runner import CPURunner
from roclab.lm.generate import Timings, complete, engine_of, stream
from roclab.lm.settings import SamplingParams
from roclab.lm.text.tokenizer import Tokenizer
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


def rate_edited(runner: CPURunner, tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> float:
    """Tokens per second where each next token is given."""

    def given(ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(logits).index_fill_(0, torch.tensor(answer[len(ids) - len(prompt)]), 1.0)

    timings, params = Timings(), SamplingParams(max_new_tokens=len(answer), ignore_eos=True)
    for _ in stream(runner, tokenizer, [prompt], params, timings, processors=[given]):
        pass
    return timings.decode_tokens_per_second


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
    engine = engine_of(model)
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
                for engine.prompt_lookup in (False, True):
                    engine.cache.clear()
                    if temperature is None:
                        answer = tokenizer.encode(EDITED[name])
                        rates[engine.prompt_lookup].append(rate_edited(model, tokenizer, prompt, answer))
                        continue
                    timings, params = Timings(), SamplingParams(temperature=temperature, max_new_tokens=options.tokens)
                    texts.add(tuple(complete(model, tokenizer, [prompt], params, timings)[0].token_ids))
                    rates[engine.prompt_lookup].append(timings.decode_tokens_per_second)
            if len(texts) > 1:
                sys.exit(f"{name}: the text differs with drafts")
            plain, drafted = (statistics.median(rates[way]) for way in (False, True))
            label = f"{kind} {name}" + ("" if temperature is None else f" {temperature:g}")
            gains[label] = round(drafted / plain, 3)
            print(f"{label:20} {plain:7.1f} → {drafted:7.1f} tokens/s  {drafted / plain:.2f}×", flush=True)
    print(json.dumps(gains))


if __name__ == "__main__":
    main()
