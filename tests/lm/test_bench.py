"""`roclab lm bench` on a tiny random model: the whole measurement, without peers."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from roclab_bench.lm import _figures, _summary, table

from roclab.lm.engine.cpu.build import find_compiler

from .build import assert_one_line, peer, roclab, write_gguf

SMALL = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 256}
SUMMARY = {"decode_ratio_llamacpp", "prefill_ratio_llamacpp", "decode_bandwidth_share", "load_seconds", "ttft_warm_ms",
           "batch16_throughput"}  # fmt: skip


@pytest.mark.skipif(find_compiler() is None, reason="no C compiler on this machine")
def test_the_table_and_the_line_of_json(tmp_path):
    model = write_gguf(tmp_path / "m.gguf", peer("llama", **SMALL), block_type="Q8_0")
    peer_python = shutil.which("false")  # starts, and cannot do what it is asked for
    done = roclab("lm", "bench", "--model", str(model), "--quick", "--peers", "llama.cpp",
                  "--peer-python", str(peer_python))  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert set(summary) >= SUMMARY
    assert summary["decode_ratio_llamacpp"] is None  # the peer could not run: said, and left out
    assert all(summary[key] > 0 for key in SUMMARY - {"decode_ratio_llamacpp", "prefill_ratio_llamacpp"})
    for row in ("load, s", "prefill 128 tokens", "decode at 100 of context", "decode 16 sequences", "peak memory"):
        assert row in done.stdout
    assert "read 512 tokens" not in done.stdout  # beyond this model's context
    assert "llama.cpp" in done.stdout + done.stderr


DYING_PEER = """
import ctypes, os

__version__ = "0"

class Llama:
    calls = 0
    ctx = None
    def __init__(self, *args, **options): pass
    def n_vocab(self): return 300
    def reset(self): pass
    def eval(self, ids):
        self.calls += 1
        if self.calls > 3: os.abort()

def llama_get_logits_ith(ctx, i): return (ctypes.c_float * 300)()
"""


@pytest.mark.skipif(find_compiler() is None, reason="no C compiler on this machine")
def test_a_peer_that_dies_midway_is_named_and_our_figures_are_printed(tmp_path, monkeypatch):
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text(DYING_PEER)
    (tmp_path / "llama_cpp" / "llama.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    model = write_gguf(tmp_path / "m.gguf", peer("llama", **SMALL), block_type="Q8_0")
    done = roclab("lm", "bench", "--model", str(model), "--quick", "--repeats", "1", "--peers", "llama.cpp")
    assert done.returncode == 0, done.stderr
    assert "llama.cpp (1) failed: exit code -6" in done.stdout
    assert "decode at 100 of context" in done.stdout


def test_a_model_that_is_not_there(tmp_path):
    assert_one_line(roclab("lm", "bench", "--model", str(tmp_path / "none.gguf")), "none.gguf")


def test_a_python_that_is_not_there(tmp_path):
    model = write_gguf(tmp_path / "m.gguf", peer("llama", **SMALL), block_type="Q8_0")
    ask = ("lm", "bench", "--model", str(model), "--peers", "llama.cpp", "--peer-python", str(tmp_path / "python9"))
    assert_one_line(roclab(*ask), "python9")


def test_figures_are_medians_and_ratios_take_the_better_peer():
    times = {"ttft 64": [0.3, 0.1, 0.2], "prefill 512": [2.0], "decode at 100": [0.5, 0.25, 1.0]}
    figures = _figures({**times, "batch 16": [1.0], "batch 4": []})
    assert figures == {"ttft_warm_ms": 200.0, "prefill 512": 256.0, "decode at 100": 64.0, "batch 16": 512.0}
    ours = {
        **figures,
        "load_seconds": 0.5,
        "weight_bytes": 1e9,
        "peak_bytes": 1e8,
        "ttft_cold_ms": 1.0,
        "engine": "fast",
    }
    measured = {"roclab": ours, "llama.cpp (1)": {"decode at 100": 20.0}, "llama.cpp (2)": {"decode at 100": 32.0}}
    summary = _summary(measured, {"bandwidth": 128e9, "flops": 1e9})
    assert summary["decode_ratio_llamacpp"] == 2.0
    assert summary["decode_bandwidth_share"] == 0.5
    assert summary["prefill_ratio_llamacpp"] is None
    text = table({"programs": measured, "machine": {"bandwidth": 128e9, "flops": 1e9}, "summary": summary, "notes": []})
    for part in ("64.0", "–", "50%"):
        assert part in text
