"""What holding an answer to a JSON schema costs: the seconds of its logits processor beside those of decoding.

    python bench/lm_grammar.py [--model smollm2-135m] [--schemas 20]

The schemas are those of tests/server/test_stress.py; each answer is decoded alone, without the prompt lookup: a token a
step, and with the tokens that the schema forces computed in one step. The last line is JSON.
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
        return self._timed(self.held, ids, logits)

    def forced(self, ids):
        return self._timed(self.held.forced, ids)

    def _timed(self, function, *arguments):
        started = time.perf_counter()
        found = function(*arguments)
        self.seconds += time.perf_counter() - started
        return found


class Unforced(Timed):
    """The same without tokens known in advance: every one is a step."""

    forced = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--schemas", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # as the server's engine does
    runner, tokenizer = load(open_checkpoint(asked.model), "fast")
    grammars, found, alike = Grammars(tokenizer, runner.config.vocab_size), {}, 0
    seconds = {kind: [] for kind in (Unforced, Timed)}  # (of the processor, of all steps, tokens, steps) of each answer
    for seed in range(asked.schemas):
        schema = json.dumps(an_object(random.Random(seed), 2))
        prompt = tokenizer.encode_chat([{"role": "user", "content": f"Invent a record, number {seed}."}])
        answers = []
        for kind, measured in seconds.items():
            timed = kind(Held(grammars.compile("json_schema", schema, "schema"), tokenizer, prompt, False))
            engine = Engine(runner, prompt_lookup=False)
            request = engine.submit(prompt, SamplingParams(max_new_tokens=200), end_token_ids=tokenizer.eos_token_ids,
                                    processors=[timed])  # fmt: skip
            engine.step()  # the prompt
            timed.seconds, steps = 0.0, []
            while not request.done:
                engine.step()
                steps.append(engine.last_step.seconds)
            answers.append(request.ids)
            if steps:
                measured.append((timed.seconds, sum(steps), request.new_tokens - 1, len(steps)))
        alike += answers[0] == answers[1]
    for kind, measured in seconds.items():
        own, whole, tokens, steps = (sum(column) for column in zip(*measured, strict=True))
        name = "forced tokens together" if kind is Timed else "one token a step"
        found[name] = {"tokens": tokens, "steps": steps, "tokens_per_second": round(tokens / whole, 1),
                       "us_per_token": round(1e6 * own / tokens, 1), "share_of_decode": round(own / (whole - own), 4),
                       "median_share": round(statistics.median(a / (b - a) for a, b, _, _ in measured), 4)}  # fmt: skip
    print(json.dumps(found | {"answers_alike": alike, "schemas": asked.schemas}))


if __name__ == "__main__":
    main()
