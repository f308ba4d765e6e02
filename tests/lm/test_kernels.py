"""The compiled kernels against the readable model: every path of this processor, every kind of block, batches, pieces,
guesses and reused caches to the last bit."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.cpu import build
from roclab.lm.engine.cpu.build import available_paths, load_library
from roclab.lm.engine.cpu.runner import MAX_ROWS, CPURunner
from roclab.lm.engine.prefix_cache import common_length
from roclab.lm.engine.prompt_lookup import Costs, Lookup
from roclab.lm.engine.runner import score
from roclab.lm.engine.torch_runner import TorchRunner
from roclab.lm.generate import complete, engine_of, stream
from roclab.lm.loading import load
from roclab.lm.model import RocLMConfig, RocLMForCausalLM, init_weights
from roclab.lm.settings import SamplingParams
from roclab.lm.weights.checkpoint import Checkpoint, open_checkpoint

from .build import TINY, assert_one_line, peer, roclab, write_folder, write_gguf

if build.find_compiler() is None:
    pytest.skip("no C compiler on this machine", allow_module_level=True)

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
        "initializer_range": 0.1}  # fmt: skip
IDS = [5, 17, 250, 3, 99, 42, 7, 7, 280, 11, 64, 128, 200, 1]


@pytest.fixture(params=available_paths())
def path(request) -> str:
    return request.param


def checkpoint_of(tmp_path, kind="llama", block_type="Q4_1", **changes):
    return open_checkpoint(write_gguf(tmp_path / "m.gguf", peer(kind, **WIDE | changes), block_type=block_type))


def off(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference, as a share of the logits' own spread."""
    return ((logits - expected).pow(2).mean().sqrt() / expected.std()).item()


def read(model: CPURunner, ids: list[int]) -> torch.Tensor:
    return score(model, ids, len(ids))


# ── The same logits as the readable model ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("block_type", ["Q4_0", "Q4_1", "Q8_0", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K",
                                        "IQ4_NL", "IQ4_XS", "MXFP4"])  # fmt: skip
def test_every_block_type_on_every_path(path, block_type, tmp_path):
    checkpoint = checkpoint_of(tmp_path, block_type=block_type)
    with torch.no_grad():
        expected = checkpoint.load_model()(torch.tensor([IDS]))[0]
    rounded = (
        0.05 if block_type not in ("Q4_0", "Q4_1", "Q8_0", "Q5_0", "Q4_K") else 0.002
    )  # weights that are rounded to int8 once more
    assert off(read(CPURunner(checkpoint, path=path, float_activations=True, threads=1), IDS), expected) < rounded
    assert off(read(CPURunner(checkpoint, path=path, threads=1), IDS), expected) < 0.1


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("qwen3", {"head_dim": 64}), ("qwen3", {"tie_word_embeddings": True}), ("qwen2", {}), ("llama", {}),
     ("llama", {"num_key_value_heads": 1}), ("llama", {"vocab_size": 301, "intermediate_size": 480}),
     ("llama", {"num_key_value_heads": 4, "hidden_size": 320, "head_dim": 80})],
)  # fmt: skip
def test_every_architecture_on_every_path(path, kind, changes, tmp_path):
    """QK-norm, biases, tied heads, head sizes, rows that do not fill a tile."""
    checkpoint = checkpoint_of(tmp_path, kind, "Q8_0", **changes)
    with torch.no_grad():
        expected = checkpoint.load_model()(torch.tensor([IDS]))[0]
    assert off(read(CPURunner(checkpoint, path=path, float_activations=True, threads=1), IDS), expected) < 0.002
    assert off(read(CPURunner(checkpoint, path=path, threads=1), IDS), expected) < 0.1


def test_the_real_weights(path, smollm, smollm_path):
    model, tokenizer = smollm
    ids = tokenizer.encode("Gravity is a fundamental concept in physics that describes the curvature of spacetime.")
    with torch.no_grad():
        expected = model.model(torch.tensor([ids]))[0].log_softmax(-1)
    for exact, most in ((True, 1e-5), (False, 0.02)):
        logits = read(
            CPURunner(open_checkpoint(smollm_path), path=path, float_activations=exact, threads=1), ids
        ).log_softmax(-1)
        divergence = (expected.exp() * (expected - logits)).sum(-1).mean()
        assert divergence < most, (exact, divergence)


def test_the_likeliest_text_is_the_readable_models_on_every_path(path, smollm, smollm_path):
    """After "the presence of" two words are 0.03 logits apart."""
    model, tokenizer = smollm
    prompt = tokenizer.encode_chat([{"role": "user", "content": "What is gravity? Explain in two sentences."}])
    params = SamplingParams(max_new_tokens=30)
    fast = CPURunner(open_checkpoint(smollm_path), path=path, float_activations=True, threads=1)
    expected = complete(model, tokenizer, [prompt], params)[0].token_ids
    assert complete(fast, tokenizer, [prompt], params)[0].token_ids == expected


@pytest.mark.parametrize("floats", [True, False])
@pytest.mark.parametrize("kind", ["window", "window in one layer", "yarn"])
def test_windows_and_yarn_on_every_path(path, kind, floats):
    """Over a text of several chunks (attention_int8.h), with a window that ends inside one; and what a kernel without
    them would give is far off."""
    wide = TINY | WIDE | {"head_dim": 64, "max_position_embeddings": 2048, "vocab_size": 300}
    wide = {name: value for name, value in wide.items() if name != "initializer_range"}
    changes = {
        "window": {"sliding_window": 150},
        "window in one layer": {"sliding_window": 40, "layer_types": ["full_attention", "sliding_attention"]},
        "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}},
    }[kind]
    torch.manual_seed(3)
    model = init_weights(RocLMForCausalLM(RocLMConfig(**wide, qk_norm=False, **changes)), std=0.1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:  # what int8 can hold, so that rounding them changes nothing
                rows = gguf.quants.quantize(parameter.numpy(), gguf.GGMLQuantizationType.Q8_0)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.Q8_0)))
    ids = torch.randint(0, 300, (1300,)).tolist()
    plain = RocLMForCausalLM(RocLMConfig(**wide, qk_norm=False)).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected, without = (m(torch.tensor([ids]))[0, -200:] for m in (model, plain))
    runner = CPURunner(Checkpoint.of(model, None), quantize="int8", float_activations=floats, path=path, threads=2)
    sequence = runner.new_sequence(1400)
    runner.forward([(sequence, ids[:1100], 0)])
    found = runner.forward([(sequence, ids[1100:1200], 100)]).clone()
    found = torch.cat([found, *(runner.forward([(sequence, [i], 1)]).clone() for i in ids[1200:])])
    assert off(found, expected) < (0.002 if floats else 0.05)
    assert off(without, expected) > 0.2


def test_float_weights_rounded_to_int8_and_int4(path, tmp_path):
    checkpoint = open_checkpoint(write_folder(tmp_path, peer("qwen3", **WIDE)))
    with torch.no_grad():
        expected = checkpoint.load_model()(torch.tensor([IDS]))[0]
    losses = {
        q: off(read(CPURunner(checkpoint, quantize=q, float_activations=True, path=path, threads=1), IDS), expected)
        for q in ("int8", "int4")
    }
    assert losses["int8"] < 0.05 < losses["int4"] < 0.5


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_quantizing_is_as_near_as_the_gguf_package(kind):
    """The rounding itself: never worse than taking the range of each group, which the package does."""
    import gguf

    from roclab.lm.engine.cpu.pack import KINDS
    from roclab.lm.weights.gguf_blocks import BLOCK_TYPES

    weights = np.random.default_rng(1).normal(size=(64, 256)).astype(np.float32)
    weights[3, :32], weights[4, 32:64], weights[5, 0] = 0, 0.25, 9e4  # nothing, one value, beyond float16
    block_type = next(b for b in BLOCK_TYPES.values() if b.name == kind)
    blocks = np.empty((weights.size // 32, block_type.nbytes), np.uint8)
    library = load_library()
    assert library is not None
    library.roclm_quantize(KINDS[kind], weights.ctypes.data, len(blocks), blocks.ctypes.data)
    ours = block_type.dequantize(blocks).reshape(weights.shape)
    theirs = gguf.quants.dequantize(gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind]),
                                    gguf.GGMLQuantizationType[kind])  # fmt: skip
    assert np.isfinite(ours).all()
    assert (ours[3, :32] == 0).all()
    assert np.abs(ours[4, 32:64] - 0.25).max() < 1e-3
    rows = [r for r in range(64) if r != 5]
    assert ((ours - weights)[rows] ** 2).mean() <= ((theirs - weights)[rows] ** 2).mean() * 1.0001


# ── The same bits, however the work is cut ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("block_type", ["Q4_0", "Q4_1", "Q8_0"])
def test_pieces_batches_and_threads_change_no_bit(path, block_type, exact, tmp_path):
    model = CPURunner(checkpoint_of(tmp_path, block_type=block_type), path=path, float_activations=exact, threads=1)
    ids = (IDS * 9)[:123]
    whole = read(model, ids)
    pieces, one = [], model.new_sequence(128)
    for size in (1, 2, 3, 4, 5, 6, 7, 8, 40, 47):  # every block size of the kernels, and odd remainders
        at = len(one.ids)
        pieces.append(model.forward([(one, ids[at : at + size], size)]))
    assert torch.equal(torch.cat(pieces), whole)
    others = [model.new_sequence(64) for _ in range(3)]
    mixed = model.forward([(others[0], IDS, 1), (s := model.new_sequence(128), ids, 2), (others[1], IDS[:3], 0)])
    assert torch.equal(mixed[1:], whole[-2:])
    assert len(s.ids) == 123
    for few, many, long in ((3, 3, 20), (1, 1, 123), (3, 3, 123), (1, 3, 123), (2, 4, 123), (4, 2, 123)):
        model._set_threads(few, many)
        assert torch.equal(read(model, ids[:long]), whole[:long])
        assert torch.equal(model.forward([(others[1], IDS[3:4], 1)]), read(model, IDS[:4])[-1:])
        others[1].cut(3)


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_chunks_of_a_long_text_change_no_bit(path, kv_heads, tmp_path):
    """Several chunks of positions (512 each): one after the other, or shared by threads."""
    small = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_key_value_heads": kv_heads}
    checkpoint = checkpoint_of(tmp_path, block_type="Q8_0", max_position_embeddings=2048, **small)
    ids = (IDS * 80)[:1100]
    with torch.no_grad():
        expected = checkpoint.load_model()(torch.tensor([ids]))[0]
    model = CPURunner(checkpoint, path=path, threads=1)
    whole = read(model, ids)
    assert off(whole, expected) < 0.1
    assert off(read(CPURunner(checkpoint, path=path, float_activations=True, threads=1), ids), expected) < 0.002
    for threads in ((1, 1), (2, 2), (1, 3)):
        model._set_threads(*threads)
        sequence = model.new_sequence(1200)
        for end in (500, 511, 512, 513, 1023, 1026, 1027, 1099, 1100):
            start = len(sequence.ids)
            assert torch.equal(model.forward([(sequence, ids[start:end], 1)])[0], whole[end - 1]), (threads, end)
    assert torch.equal(read(model, ids), whole)


def test_more_rows_than_one_call_takes(tmp_path):
    checkpoint = checkpoint_of(tmp_path, max_position_embeddings=2 * MAX_ROWS + 64)
    model = CPURunner(checkpoint, threads=1)
    ids = (IDS * 40)[: 2 * MAX_ROWS + 5]
    sequence = model.new_sequence(400)
    assert torch.equal(model.forward([(sequence, ids, 7)]), read(model, ids)[-7:])


def test_what_was_cut_off_leaves_no_trace(tmp_path):
    model = CPURunner(checkpoint_of(tmp_path), threads=1)
    sequence = model.new_sequence(64)
    model.forward([(sequence, IDS, 0)])
    sequence.cut(4)
    assert torch.equal(model.forward([(sequence, [9, 8], 2)]), read(model, [*IDS[:4], 9, 8])[-2:])
    grown = model.copy(sequence, 6, 200)
    assert torch.equal(model.forward([(grown, [5], 1)]), read(model, [*IDS[:4], 9, 8, 5])[-1:])


# ── Behind the engine ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def fast(smollm_path):
    checkpoint = open_checkpoint(smollm_path)
    return CPURunner(checkpoint, threads=1), checkpoint.load_tokenizer()


REWRITE = "Repeat this text word for word: The cat sat on the mat. The dog sat on the log. The cat sat on the mat."


@pytest.mark.parametrize("params", [SamplingParams(max_new_tokens=40, ignore_eos=True),
                                    SamplingParams(max_new_tokens=40, temperature=0.7, top_p=0.9, seed=4, logprobs=2),
                                    SamplingParams(max_new_tokens=40, repetition_penalty=1.2)])  # fmt: skip
def test_draft_tokens_change_no_token(fast, smollm_path, params, monkeypatch):
    model, tokenizer = fast
    engine = engine_of(model)
    prompt = tokenizer.encode_chat([{"role": "user", "content": REWRITE}])
    monkeypatch.setattr(engine, "prompt_lookup", False)
    plain = complete(model, tokenizer, [prompt], params)
    monkeypatch.setattr(engine, "prompt_lookup", True)
    monkeypatch.setattr(Costs, "of", lambda self, rows: 1.0)  # a draft whenever there is anything to draft
    calls = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda work, **kw: calls.append(work) or forward(work, **kw))
    assert complete(model, tokenizer, [prompt], params) == plain
    assert max(len(work[0][1]) for work in calls[1:]) > 1
    if params.ignore_eos:
        assert len(calls) < 30  # of 40 tokens, many were drafts


def test_a_batch_gives_the_rows_alone(fast):
    model, tokenizer = fast
    prompts = [tokenizer.encode(t) for t in ("The sea", "Once upon a time there was a small robot who", "1, 2, 3,")]
    params = SamplingParams(max_new_tokens=12, logprobs=1)
    assert complete(model, tokenizer, prompts, params) == [complete(model, tokenizer, [p], params)[0] for p in prompts]


def test_the_next_turn_reads_only_what_is_new(fast, monkeypatch):
    model, tokenizer = fast
    prompt = tokenizer.encode("A long time ago, in a village by the sea, there lived an old man and his cat. They")
    answer = complete(model, tokenizer, [prompt], SamplingParams(max_new_tokens=8))[0].token_ids
    longer = [*prompt, *answer, *tokenizer.encode(" And then")]
    rows = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda work, **kw: rows.append([len(ids) for _, ids, _ in work]) or forward(work, **kw)
    )
    again = complete(model, tokenizer, [longer], SamplingParams(max_new_tokens=5))[0].token_ids
    assert rows[0] == [len(longer) - len(prompt) - len(answer) + 1]  # the last token was chosen, never computed
    engine_of(model).cache.clear()
    assert complete(model, tokenizer, [longer], SamplingParams(max_new_tokens=5))[0].token_ids == again
    assert rows[-5:] != rows[:5]


def test_a_reader_who_leaves_gives_the_cache_back(fast):
    model, tokenizer = fast
    engine_of(model).cache.clear()
    events = stream(model, tokenizer, [tokenizer.encode("The sea")], SamplingParams(max_new_tokens=50))
    next(events), next(events)
    events.close()
    assert [len(s.ids) for s in engine_of(model).cache.idle] == [3]


def test_lookup_guesses_what_followed_before_and_learns_when_not_to():
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3])
    assert lookup.draft(10, Costs())[:1] == [4]
    assert len(lookup.draft(2, Costs())) <= 2
    lookup.append(4)
    assert lookup.draft(10, Costs())[:2] == [5, 6]
    wrong = Lookup([1, 2, 3] * 2)
    for i in range(40):  # the same three tokens, never followed by the same
        for token in (1, 2, 3, 100 + i):
            wrong.append(token)
    wrong.append(1), wrong.append(2), wrong.append(3)
    assert wrong.draft(10, Costs()) == []
    costs = Costs()
    for _ in range(10):
        costs.add(1, 1.0), costs.add(2, 5.0)
    assert Lookup([1, 2, 3, 4, 1, 2, 3]).draft(10, costs) == []
    repeating = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3]
    assert Lookup(repeating).draft(10, costs) == []
    for _ in range(300):  # … but not for good: while nothing is guessed, passes over one row are all there is
        costs.add(1, 1.0)
    assert Lookup(repeating).draft(10, costs) != []


def test_common_length():
    assert [common_length(a, [1, 2, 3]) for a in ([], [1], [1, 2, 3, 4], [1, 5, 3], [4])] == [0, 1, 3, 1, 0]


# ── Choosing an engine, and what can go wrong ───────────────────────────────────────────────────────────────────


def test_auto_takes_the_kernels_where_they_fit(tmp_path, smollm_path, monkeypatch):
    real = open_checkpoint(smollm_path)
    assert isinstance(load(real, threads=1)[0], CPURunner)
    assert isinstance(load(real, dtype="bfloat16")[0], TorchRunner)
    assert isinstance(load(real, "torch")[0], TorchRunner)
    floats = open_checkpoint(write_folder(tmp_path / "f", peer("qwen3", **WIDE)))
    assert isinstance(load(floats)[0], TorchRunner)
    assert isinstance(load(floats, quantize="int8", threads=1)[0], CPURunner)
    narrow = open_checkpoint(write_gguf(tmp_path / "n.gguf", peer("llama", head_dim=24), block_type="Q8_0"))
    assert isinstance(load(narrow)[0], TorchRunner)
    with pytest.raises(RocLabError, match="head_dim is 24"):
        load(narrow, "fast")
    for engine, options, words in (
        ("quick", {}, "choose one of auto, fast, torch"),
        ("fast", {"device": "cuda"}, "on the CPU|not usable here"),
        ("torch", {"quantize": "int8"}, "belong to the fast engine"),
        ("torch", {"float_activations": False}, "--int8-activations"),
        ("fast", {"quantize": "int3"}, "choose one of int8, int4"),
    ):
        with pytest.raises(RocLabError, match=words):
            load(real, engine, **options)
    with pytest.raises(RocLabError, match="--quantize int8 or int4"):
        load(floats, "fast")
    assert isinstance(load(real, "torch", float_activations=True)[0], TorchRunner)  # its activations are floats anyway


def test_greedy_generation_keeps_floats_unless_told(smollm_path):
    command = ["lm", "generate", "--model", str(smollm_path), "--chat", "--prompt", "What is gravity? Explain in two "]
    command[-1] += "sentences."
    texts = [roclab(*command, "-n", "30", "--engine", e, *more).stdout for e, *more in (["fast"], ["torch"])]
    assert texts[0] == texts[1] != ""
    rounded = roclab(*command, "-n", "3", "--engine", "fast", "--int8-activations")
    assert rounded.returncode == 0


@pytest.mark.parametrize("compiler", ["", "/nowhere/cc", "false"])
def test_without_a_working_compiler_torch_does_the_work(compiler, tmp_path, smollm_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "find_compiler", lambda: [compiler] if compiler else None)
    load_library.cache_clear()
    try:
        assert load_library() is None
        assert isinstance(load(open_checkpoint(smollm_path))[0], TorchRunner)
        with pytest.raises(RocLabError, match="kernels 'portable'"):
            load_library("portable")
        assert not list(tmp_path.rglob("*.so"))
    finally:
        load_library.cache_clear()


def test_what_the_system_forbids_or_the_compiler_does_not_know_is_passed_over(monkeypatch):
    compiled, real = [], build._compiled

    class Forbidden(ctypes.CDLL):
        def roclm_allowed(self):
            return 0

    def compiled_but(path, compiler):
        compiled.append(path)
        if path == "unknown":
            raise OSError("unrecognized option")
        library = real("portable", compiler)
        return library if path == "portable" else Forbidden(library._name)

    monkeypatch.setattr(build, "_compiled", compiled_but)
    monkeypatch.setattr(build, "_declare", lambda library: library)
    monkeypatch.setattr(build, "PATHS", dict.fromkeys(("unknown", "forbidden", "portable"), ((), ())))
    library = load_library.__wrapped__()
    assert library is not None
    assert library.path == "portable"
    assert compiled == ["unknown", "forbidden", "portable"]
    with pytest.raises(RocLabError, match="does not let this process use AMX"):
        load_library.__wrapped__("forbidden")
    with pytest.raises(RocLabError, match="unrecognized option"):
        load_library.__wrapped__("unknown")


def test_paths_that_are_not_there_are_said(monkeypatch):
    with pytest.raises(RocLabError, match="choose one of"):
        load_library("sse9")
    monkeypatch.setattr(build, "_processor_features", frozenset)
    assert available_paths() == ["portable"]
    with pytest.raises(RocLabError, match="this processor has portable"):
        load_library.__wrapped__("avx2")


def test_the_command_line_chooses(smollm_path, tmp_path):
    ask = ("lm", "generate", "--model", str(smollm_path), "--prompt", "The sea", "-n", "4")
    fast, torch_run = roclab(*ask), roclab(*ask, ROCLAB_KERNELS="torch")
    assert fast.returncode == torch_run.returncode == 0, fast.stderr
    assert fast.stdout == torch_run.stdout
    assert_one_line(roclab(*ask, "--engine", "fast", ROCLAB_KERNELS="torch"), "ROCLAB_KERNELS=torch forbids")
    assert_one_line(roclab(*ask, "--engine", "torch", "--quantize", "int8"), "--quantize")
    assert_one_line(roclab(*ask, ROCLAB_KERNELS="sse9"), "sse9")


@pytest.mark.slow
@pytest.mark.parametrize("chosen", available_paths())
def test_zig_compiles_the_same_kernels(chosen, tmp_path, smollm_path):
    """The compiler in a wheel; results equal the system compiler's but for the order of float operations in C loops."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("pip install ziglang")
    code = (
        "import torch\nfrom roclab.lm.weights.checkpoint import open_checkpoint\n"
        "from roclab.lm.engine.cpu.runner import CPURunner\n"
        f"model = CPURunner(open_checkpoint({str(smollm_path)!r}), path={chosen!r}, threads=2)\n"
        f"ids = {list(range(100, 140))}\n"
        f"torch.save(model.forward([(model.new_sequence(64), ids, len(ids))]), {str(tmp_path / 'logits.pt')!r})\n"
    )
    environment = {"ROCLAB_CC": f"{sys.executable} -m ziglang cc", "ROCLAB_CACHE": str(tmp_path)}
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    zig = torch.load(tmp_path / "logits.pt", weights_only=True)
    ours = read(CPURunner(open_checkpoint(smollm_path), path=chosen, threads=1), list(range(100, 140)))
    assert off(zig, ours) < 0.03
