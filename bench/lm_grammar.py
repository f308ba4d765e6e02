"""What holding an answer to a JSON schema costs: the seconds of its logits processor beside those of decoding.

    python bench/lm_grammar.py [--model smollm2-135m] [--schemas 20]

The schemas are those of tests/server/test_stress.py; each answer is decoded alone, without drafts. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch

from roclab.lm.engine.scheduler import Engine
from roclab.lm.loading import load
from roclab.lm.settings import SamplingParams
from roclab.lm.weights.checkpoint import open_checkpoint
from roclab.server.grammar import Grammars, Held

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.server.test_stress import an_object


class Timed:
    """A logits processor whose seconds are counted."""

    def __init__(self, held: Held):
        self.held, self.seconds = held, 0.0

    def __call__(self, ids, logits):
        started = time.perf_counter()
        found = self.held(ids, logits)
        self.seconds += time.perf_counter() - started
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--schemas", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # as the server's engine does
    runner, tokenizer = load(open_checkpoint(asked.model), "fast")
    grammars, shares, each, tokens = Grammars(tokenizer, runner.config.vocab_size), [], [], 0
    for seed in range(asked.schemas):
        schema = json.dumps(an_object(random.Random(seed), 2))
        prompt = tokenizer.encode_chat([{"role": "user", "content": f"Invent a record, number {seed}."}])
        timed = Timed(Held(grammars.compile("json_schema", schema, "schema"), tokenizer, prompt, False))
        engine = Engine(runner, prompt_lookup=False)
        request = engine.submit(prompt, SamplingParams(max_new_tokens=200), end_token_ids=tokenizer.eos_token_ids,
                                processors=[timed])  # fmt: skip
        engine.step()  # the prompt
        timed.seconds, steps = 0.0, []
        while not request.done:
            engine.step()
            steps.append(engine.last_step.seconds)
        if steps:
            shares.append(timed.seconds / (sum(steps) - timed.seconds))
            each.append(1e6 * timed.seconds / len(steps))
            tokens += len(steps)
    found = {"tokens": tokens, "median_share": statistics.median(shares), "largest_share": max(shares),
             "median_us": statistics.median(each)}  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
