"""From the GGUF file to a model that answers: seconds and peak memory, RocLM and transformers in turn.

    python bench/lm_load.py [--peer] [--runs 3]

Every run is a process of its own, so that its peak memory is its own. Imports are timed apart: "open" is from the file
name to model and tokenizer, "first" to the first token of an answer. With --peer, transformers opens the same file
(it takes about a minute on a small machine). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

OURS = """
import json, resource, time
import torch
from roclab import lm
start = time.perf_counter()
model, tokenizer = lm.load("smollm2-135m", engine="torch")
opened = time.perf_counter()
prompt = tokenizer.encode_chat([{"role": "user", "content": "What is gravity? Explain in two sentences."}])
lm.complete(model, tokenizer, [prompt], lm.SamplingParams(max_new_tokens=1))
first = time.perf_counter()
lm.complete(model, tokenizer, [prompt], lm.SamplingParams(max_new_tokens=32))
"""
PEER = """
import json, resource, time
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from roclab.lm.weights.sources import locate
path = locate("smollm2-135m")
start = time.perf_counter()
tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
opened = time.perf_counter()
prompt = tokenizer("What is gravity? Explain in two sentences.", return_tensors="pt")
model.generate(**prompt, max_new_tokens=1, do_sample=False)
first = time.perf_counter()
model.generate(**prompt, max_new_tokens=32, do_sample=False)
"""
REPORT = """
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps({"open": opened - start, "first": first - start, "peak_gb": peak * 1.024}))
"""


def measure(code: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", code + REPORT], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="store_true", help="also measure transformers (needs gguf and accelerate)")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()

    codes = {"roclab": OURS, **({"transformers": PEER} if options.peer else {})}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in codes}
    for _ in range(options.runs):
        for name, code in codes.items():
            runs[name].append(measure(code))
    medians = {
        name: {key: round(statistics.median(run[key] for run in of), 3) for key in of[0]} for name, of in runs.items()
    }
    print(f"{'':14}{'open s':>10}{'first token s':>16}{'peak GB':>10}")
    for name, row in medians.items():
        print(f"{name:14}{row['open']:10.2f}{row['first']:16.2f}{row['peak_gb']:10.3f}")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
