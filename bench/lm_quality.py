"""What the fast engine loses against the same weights dequantized to float32: perplexity, KL divergence, greedy texts.

    python bench/lm_quality.py --text wikitext-2/test.txt [--peer-python PYTHON] [--parts perplexity,kl,greedy]
                               [--calibration wikitext-2/valid.txt] [--models "int4,int4 calibrated"]

KL: mean over positions of KL(float32 ‖ engine) of the next-token distribution, in nats, over windows of 512 tokens;
--peer-python names a Python with llama-cpp-python, measured on the same tokens and the same GGUF file. Greedy: prompts
cut from the text, 64 tokens each with float activations; where a text differs, the float32 model's gap between its two
best tokens at that place is printed. Takes some minutes. The last line is JSON.

int8 and int4 are judged on float weights. Those of a 4-bit file lie on its grid, on which rounding to 4 bits again
would cost nothing; so `float_weights` shuffles the channels first: the same function, but the 32 numbers of a group
come from many different groups of the file (of o_proj from two, as a head's channels stay together), which no grid
fits.
"int4 calibrated" is what `roclab lm quantize` writes of them on --calibration, and "int4 calibrated on itself", which
--models has to ask for, on text that the model wrote.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from roclab.lm.engine.cpu.runner import CPURunner
from roclab.lm.engine.runner import score
from roclab.lm.engine.torch_runner import TorchRunner
from roclab.lm.evaluate import evaluate_text
from roclab.lm.generate import complete
from roclab.lm.quantize import calibration_texts, quantize, written_texts
from roclab.lm.settings import SamplingParams
from roclab.lm.weights.checkpoint import Checkpoint, open_checkpoint
from roclab.lm.weights.tensors import Contents, StoredTensor, tensor_in_memory

WINDOW = 512
LLAMA_CPP = """
import json, sys
import numpy as np
import llama_cpp.llama
if sys.argv[4] == "plain":
    defaults = llama_cpp.llama_cpp.llama_model_default_params
    def plain():
        params = defaults(); params.use_extra_bufts = False
        return params
    llama_cpp.llama.llama_cpp.llama_model_default_params = plain
windows = json.load(open(sys.argv[2]))
model = llama_cpp.Llama(sys.argv[1], n_ctx=1024, n_batch=1024, n_threads=1, logits_all=True, verbose=False)
rows = []
for ids in windows:
    model.reset(); model.eval(ids)
    rows.append(np.array(model.scores[: len(ids)], dtype=np.float32))
np.save(sys.argv[3], np.concatenate(rows))
"""


def float_weights(origin: Checkpoint) -> Checkpoint:
    """Another checkpoint's weights as floats, with the channels of the residual stream, of each MLP and of each head's
    values shuffled."""
    config, draw = origin.config, torch.Generator().manual_seed(0)
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    stream, inner, value = (
        torch.randperm(n, generator=draw) for n in (config.hidden_size, config.intermediate_size, size)
    )
    values = torch.cat([value + size * h for h in range(groups)])
    mixed = torch.cat([value + size * h for h in range(heads)])
    # a matrix's (rows, columns); None: as they are
    orders = {
        "q_proj": (None, stream), "k_proj": (None, stream), "v_proj": (values, stream), "o_proj": (stream, mixed),
        "gate_proj": (inner, stream), "up_proj": (inner, stream), "down_proj": (stream, inner),
        "embed_tokens": (None, stream), "lm_head": (None, stream), "layernorm": (stream, None),
        "norm": (stream, None), "q_norm": (None, None), "k_norm": (None, None),
    }  # fmt: skip
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in origin.tensors.items():
        part = name.split(".")[-2]
        rows, columns = orders["layernorm" if part.endswith("layernorm") else part]
        weight = tensor.load() if rows is None else tensor.load()[rows]
        weight = weight if columns is None or weight.dim() < 2 else weight[:, columns]
        tensors[name] = tensor_in_memory(weight.contiguous())
    return Checkpoint(origin.path, Contents(config, tensors, origin.load_tokenizer))


def divergence(expected: torch.Tensor, logits: torch.Tensor) -> float:
    """Mean KL(expected ‖ logits) over rows, in nats."""
    total = 0.0
    for p, q in zip(expected.split(128), logits.split(128), strict=True):
        log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        total += (log_p.exp() * (log_p - log_q)).sum().item()
    return total / len(expected)


def kl(path: Path, models: dict[str, Any], reference: Any, ids: list[int], positions: int, python: str | None) -> dict:
    windows = [ids[i : i + WINDOW] for i in range(0, positions, WINDOW)]
    windows[-1] = windows[-1][: positions - WINDOW * (len(windows) - 1)]

    def all_logits(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([score(model, w, len(w)) for w in windows])

    expected = all_logits(reference)
    found = {name: divergence(expected, all_logits(model)) for name, model in models.items()}
    if python:
        with tempfile.TemporaryDirectory() as folder:
            tokens, out = Path(folder) / "ids.json", Path(folder) / "logits.npy"
            tokens.write_text(json.dumps(windows))
            for mode in ("usual", "plain"):  # its AMX path crashes on some machines
                command = [python, "-c", LLAMA_CPP, str(path), str(tokens), str(out), mode]
                if subprocess.run(command, capture_output=True).returncode == 0:
                    import numpy as np

                    found["llama.cpp"] = divergence(expected, torch.from_numpy(np.load(out)))
                    break
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def greedy(fast: CPURunner, reference: Any, tokenizer: Any, ids: list[int], prompts: int) -> dict[str, Any]:
    """How many of the prompts continue alike, and the float32 model's gap at each first difference."""
    step = min(len(ids) // prompts, 400)
    texts = [ids[i * step : i * step + 24] for i in range(prompts)]
    params = SamplingParams(max_new_tokens=64, ignore_eos=True)
    ours = [c.token_ids for c in complete(fast, tokenizer, texts, params)]
    theirs: list[list[int]] = []
    for i in range(0, prompts, 20):
        theirs += [c.token_ids for c in complete(reference, tokenizer, texts[i : i + 20], params)]
    gaps = []
    for prompt, a, b in zip(texts, ours, theirs, strict=True):
        if a != b:
            same = next(i for i in range(64) if a[i] != b[i])
            logits = score(reference, prompt + b[:same], 1)[0]
            gaps.append(round((logits[b[same]] - logits[a[same]]).item(), 5))
    return {"prompts": prompts, "alike": prompts - len(gaps), "gaps": gaps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m", help="a GGUF file or its short name")
    parser.add_argument("--parts", default="perplexity,kl,greedy")
    parser.add_argument("--max-bytes", type=int, help="perplexity over the first bytes only")
    parser.add_argument("--stride", type=int, help="of its windows of 1,024 tokens: by default half of one")
    parser.add_argument("--positions", type=int, default=2000)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--peer-python")
    parser.add_argument("--calibration", type=Path, help="a text for int4 calibrated")
    parser.add_argument("--tokens", type=int, default=16384, help="of calibration")
    parser.add_argument("--models", help="only these of the makers in main(), with commas")
    options = parser.parse_args()

    checkpoint = open_checkpoint(options.model)
    tokenizer, reference = checkpoint.load_tokenizer(), TorchRunner(checkpoint.load_model())
    text = options.text.read_text(encoding="utf-8")
    ids = tokenizer.encode(text[:400_000])
    floats = float_weights(checkpoint)
    folder = tempfile.TemporaryDirectory()

    def calibrated(texts: torch.Tensor) -> CPURunner:
        file = Path(folder.name) / "int4.gguf"
        file.unlink(missing_ok=True)
        quantize(floats, tokenizer, file, "int4", lambda: texts)
        return CPURunner(open_checkpoint(file))

    makers = {
        "as in the file": lambda: CPURunner(checkpoint),
        "float activations": lambda: CPURunner(checkpoint, float_activations=True),
        "int8": lambda: CPURunner(floats, quantize="int8"),
        "int4": lambda: CPURunner(floats, quantize="int4"),
        "int4 calibrated": lambda: calibrated(
            calibration_texts(checkpoint, tokenizer, options.calibration.read_text(encoding="utf-8"), options.tokens)
        ),
        "int4 calibrated on itself": lambda: calibrated(written_texts(floats, tokenizer, options.tokens)),
    }
    usual = [name for name in makers if "calibrated" not in name or (options.calibration and "itself" not in name)]
    wanted = options.models.split(",") if options.models else usual
    if unknown := set(wanted) - set(makers):
        parser.error(f"--models {', '.join(unknown)}: choose among {', '.join(makers)}")
    if "int4 calibrated" in wanted and options.calibration is None:
        parser.error('--models "int4 calibrated" needs --calibration')
    models = {name: makers[name]() for name in wanted}
    parts = options.parts.split(",")
    result: dict[str, Any] = {}
    if "kl" in parts:
        result["kl"] = kl(checkpoint.path, models, reference, ids, options.positions, options.peer_python)
        print("KL", result["kl"], flush=True)
    if "perplexity" in parts:
        piece = text.encode()[: options.max_bytes].decode(errors="ignore")
        both = {"float32": reference, **models}
        scores = {n: evaluate_text(m, tokenizer, piece, stride=options.stride).perplexity for n, m in both.items()}
        result["perplexity"] = {name: round(score, 5) for name, score in scores.items()}
        print("perplexity", result["perplexity"], flush=True)
    if "greedy" in parts:
        result["greedy"] = greedy(makers["float activations"](), reference, tokenizer, ids, options.prompts)
        print("greedy", result["greedy"], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
