"""RocLM against `transformers` and against its own properties."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from roclab.lm import model as model_module
from roclab.lm.model import (
    KVCache,
    RocLMAttention,
    RocLMConfig,
    RocLMForCausalLM,
    RocLMMLP,
    RocLMRMSNorm,
    apply_rotary_pos_emb,
    create_roclm_model,
    filter_top_k,
    filter_top_p,
    pack_documents,
    repeat_kv,
    rope_frequencies,
    rotate_half,
)
from roclab.lm.weights.huggingface import config_from_hugging_face

TOLERANCE = 1e-4
SMALL = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "eos_token_id": None,
}  # fmt: skip

PEERS = {
    "qwen3": {},
    "qwen3 untied": {"tie_word_embeddings": False, "attention_bias": True},
    "qwen2": {},
    "llama": {"head_dim": 16},
    "llama linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "llama llama3": {
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "attention_bias": True,
    },
    "mistral": {"sliding_window": None},
}  # fmt: skip


@pytest.fixture(scope="module", params=PEERS)
def pair(request):
    """(RocLM, transformers' model) with the same random weights, drawn larger than usual so that errors show."""
    import transformers

    kind = request.param.split()[0]
    name = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama", "mistral": "Mistral"}[kind]
    values = {k: v for k, v in SMALL.items() if k != "head_dim" or kind in ("qwen3", "mistral")}
    if kind in ("qwen2", "llama"):
        values["hidden_size"] = 96  # these derive head_dim = hidden_size / heads
    options = {"tie_word_embeddings": True, "rope_theta": 10000.0, **PEERS[request.param]}
    config = getattr(transformers, f"{name}Config")(**values, **options)
    torch.manual_seed(len(request.param))
    peer = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = RocLMForCausalLM(config_from_hugging_face(config.to_dict(), "config.json")).eval()
    ours.load_state_dict(peer.state_dict(), strict=True)
    return ours, peer


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_equal_transformers(pair, attention, monkeypatch):
    ours, peer = pair
    monkeypatch.setattr(ours.config, "attn_implementation", attention)
    ids = torch.randint(0, 101, (3, 40), generator=torch.Generator().manual_seed(1))
    assert gap(ours(ids), peer(ids).logits) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cached_logits_equal_transformers(pair, attention, monkeypatch):
    ours, peer = pair
    monkeypatch.setattr(ours.config, "attn_implementation", attention)
    ids = torch.randint(0, 101, (2, 30), generator=torch.Generator().manual_seed(2))
    cache = KVCache(ours.config, 2, 30)
    steps = [ours(part, cache=cache) for part in ids.split([7, 1, 1, 9, 1, 5, 6], dim=1)]
    assert gap(torch.cat(steps, dim=1), peer(ids).logits) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_left_padding_equals_transformers_and_each_row_alone(pair, attention, monkeypatch):
    ours, peer = pair
    monkeypatch.setattr(ours.config, "attn_implementation", attention)
    random = torch.Generator().manual_seed(3)
    rows = [torch.randint(0, 101, (n,), generator=random) for n in (20, 13, 1)]
    ids = torch.stack([F.pad(row, (20 - len(row), 0), value=5) for row in rows])
    mask = torch.stack([F.pad(torch.ones(len(row)), (20 - len(row), 0)) for row in rows]).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    theirs = peer(ids, attention_mask=mask, position_ids=positions).logits
    padded = ours(ids, *pack_documents(mask))
    assert gap(padded[mask.bool()], theirs[mask.bool()]) <= TOLERANCE
    for i, row in enumerate(rows):
        assert gap(padded[i, 20 - len(row) :], ours(row[None])[0]) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_have_the_logits_of_the_documents_alone(pair, attention, monkeypatch):
    ours, _ = pair
    monkeypatch.setattr(ours.config, "attn_implementation", attention)
    random = torch.Generator().manual_seed(5)
    documents = [[torch.randint(0, 101, (n,), generator=random) for n in lengths] for lengths in ((7, 1, 12), (16, 4))]
    ids = torch.stack([torch.cat(row) for row in documents])
    document_ids = torch.tensor([[0] * 7 + [1] + [2] * 12, [8] * 16 + [3] * 4])
    packed = ours(ids, *pack_documents(document_ids))
    for row, parts in zip(packed, documents, strict=True):
        alone = torch.cat([ours(part[None])[0] for part in parts])
        assert gap(row, alone) <= 1e-5 * max(1.0, alone.abs().max().item())


def test_gradients_of_packed_documents_are_those_of_the_documents_alone():
    model = create_roclm_model(SMALL)
    ids = torch.randint(0, 101, (1, 15), generator=torch.Generator().manual_seed(6))

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    together = gradients(model(ids, *pack_documents(torch.tensor([[0] * 6 + [1] * 9]))).logsumexp(-1).sum())
    alone = gradients(model(ids[:, :6]).logsumexp(-1).sum() + model(ids[:, 6:]).logsumexp(-1).sum())
    assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(together, alone, strict=True))


@torch.no_grad()
def test_generate_is_greedy_as_transformers_is(pair):
    ours, peer = pair
    ids = torch.randint(0, 101, (2, 6), generator=torch.Generator().manual_seed(4))
    theirs = peer.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(ours.generate(ids, max_length=26, do_sample=False), theirs)


def test_the_handout_s_defaults_and_names():
    config = RocLMConfig()
    expected = {
        "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768,
        "rope_theta": 1000000.0, "rope_scaling": None, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "attention_bias": False, "attention_dropout": 0.0, "pad_token_id": None, "bos_token_id": 151643,
        "eos_token_id": 151645, "tie_word_embeddings": True, "layer_types": None,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    names = set(create_roclm_model({**SMALL, "num_hidden_layers": 1}).state_dict())
    layer = "model.layers.0."
    attention = [f"{layer}self_attn.{p}.weight" for p in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
    others = [f"{layer}mlp.{p}.weight" for p in ("gate_proj", "up_proj", "down_proj")]
    others += [f"{layer}input_layernorm.weight", f"{layer}post_attention_layernorm.weight"]
    assert names == {*attention, *others, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_the_handout_s_model_has_the_size_of_qwen3_0_6b():
    with torch.device("meta"):
        assert sum(p.numel() for p in create_roclm_model().parameters()) == 596_049_920


def test_without_qk_norm_the_modules_are_absent():
    assert not any("q_norm" in n or "k_norm" in n for n in create_roclm_model({**SMALL, "qk_norm": False}).state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hiden_size": 3}, "unknown config keys: hiden_size"),
        ({"num_key_value_heads": 4}, "multiple"),
        ({"head_dim": 15}, "even"),
        ({"hidden_act": "gelu"}, "silu"),
        ({"layer_types": ["full_attention"]}, "each of 3 layers"),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "sliding_attention"),
        ({"hidden_size": "64"}, "hidden_size must be a positive whole number"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "a positive original_max_position_embeddings"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, r"of a supported kind .*'dynamic'"),
        ({"layer_types": ["sliding_attention"] * 28}, "full_attention for each"),
        ({"sliding_window": 0}, "sliding_window must be positive"),
        ({"sliding_window": 4.5}, "sliding_window must be positive"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling must be a dict with a positive factor"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 0}},
            "positive factor: got {'rope_type': 'linear', 'factor': 0}",
        ),
        ({"rope_scaling": "x"}, "rope_scaling must be a dict"),
        ({"rope_theta": -3}, "rope_theta must be a positive number"),
        ({"rope_theta": "y"}, "rope_theta must be a positive number"),
        ({"rms_norm_eps": None}, "rms_norm_eps must be a positive number"),
        ({"eos_token_id": [[1]]}, "eos_token_id must be"),
        ({"eos_token_id": "x"}, "eos_token_id must be"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        create_roclm_model({**SMALL, **change})


def test_rmsnorm_is_the_formula_in_float32_inside():
    norm = RocLMRMSNorm(8, 1e-6)
    norm.weight.data.uniform_(0.5, 2)
    x = torch.randn(4, 8) * 3
    assert gap(norm(x), norm.weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)) < 1e-6
    large = torch.full((1, 8), 300.0, dtype=torch.float16)  # 300² overflows float16
    assert torch.equal(RocLMRMSNorm(8).half()(large), torch.ones(1, 8, dtype=torch.float16))


def test_swiglu_is_the_formula():
    config = RocLMConfig.from_dict(SMALL)
    mlp, x = RocLMMLP(config), torch.randn(2, 3, 48)
    gate = mlp.gate_proj(x)
    assert gap(mlp(x), mlp.down_proj(gate * torch.sigmoid(gate) * mlp.up_proj(x))) < 1e-6


def test_rope_turns_pairs_and_depends_on_distance_only():
    config = RocLMConfig.from_dict({**SMALL, "rope_theta": 10000.0})
    angles, _ = rope_frequencies(config)
    assert gap(angles, 10000.0 ** (-torch.arange(0, 16, 2) / 16)) < 1e-7
    q, k = torch.randn(2, 1, 1, 1, 16)
    rope = model_module.RocLMRotaryEmbedding(config)

    def score(position_q: int, position_k: int) -> float:
        rotated_q, _ = apply_rotary_pos_emb(q, q, *rope(q, torch.tensor([[position_q]])))
        _, rotated_k = apply_rotary_pos_emb(k, k, *rope(k, torch.tensor([[position_k]])))
        return (rotated_q * rotated_k).sum().item()

    assert score(5, 2) == pytest.approx(score(105, 102), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-4)
    assert torch.equal(rotate_half(torch.tensor([1.0, 2.0, 3.0, 4.0])), torch.tensor([-3.0, -4.0, 1.0, 2.0]))


def test_query_heads_share_key_value_heads_in_runs():
    x = torch.arange(2.0).view(1, 2, 1, 1)
    assert repeat_kv(x, 3).flatten().tolist() == [0, 0, 0, 1, 1, 1]


def test_written_out_attention_keeps_its_map():
    config = RocLMConfig.from_dict({**SMALL, "attn_implementation": "eager"})
    model = RocLMForCausalLM(config).eval()
    model(torch.randint(0, 101, (2, 9)))
    attention = model.model.layers[1].self_attn
    assert isinstance(attention, RocLMAttention)
    weights = attention.attention_map
    assert weights is not None
    assert weights.shape == (2, 6, 9, 9)
    assert gap(weights.sum(-1), torch.ones(2, 6, 9)) < 1e-5
    assert weights.triu(1).abs().max() == 0


def test_tokens_beyond_the_context_or_the_cache_are_refused():
    model = create_roclm_model({**SMALL, "max_position_embeddings": 8})
    with pytest.raises(ValueError, match="9 tokens do not fit: the context is 8"):
        model(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="5 tokens do not fit: the cache holds 4"):
        model(torch.zeros(1, 5, dtype=torch.long), cache=KVCache(model.config, 1, 4))


def test_generate_keeps_the_prompt_ends_at_eos_and_pads():
    torch.manual_seed(0)
    model = create_roclm_model(SMALL).eval()
    prompt = torch.randint(0, 101, (4, 5))
    free = model.generate(prompt, max_length=12, do_sample=False)
    assert free.shape == (4, 12)
    assert torch.equal(free[:, :5], prompt)
    model.config.eos_token_id, model.config.pad_token_id = int(free[0, 6]), 100
    ended = model.generate(prompt, max_length=12, do_sample=False)
    assert torch.equal(ended[0, :7], free[0, :7])
    assert set(ended[0, 7:].tolist()) <= {100}
    assert model.generate(prompt, max_length=3).shape == (4, 5)  # nothing to add


def test_sampling_stays_within_top_k():
    torch.manual_seed(0)
    model = create_roclm_model(SMALL).eval()
    prompt = torch.zeros(200, 1, dtype=torch.long)
    new = model.generate(prompt, max_length=2, top_k=3, top_p=1.0, temperature=5.0)[:, 1]
    best = model(prompt[:1])[0, -1].topk(3).indices
    assert set(new.tolist()) == set(best.tolist())


rows = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=30).map(lambda x: torch.tensor([x]))


@given(rows, st.integers(1, 30))
@settings(deadline=None, max_examples=50)
def test_top_k_equals_transformers(logits, k):
    from transformers import TopKLogitsWarper

    assert torch.equal(filter_top_k(logits, k), TopKLogitsWarper(top_k=k)(torch.zeros(1, 1), logits))


@given(rows, st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=50)
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    kept = ~torch.isinf(filter_top_p(logits, p)[0])
    probabilities = logits[0].double().softmax(-1)
    mass = probabilities[kept].sum().item()
    assert kept.any()
    assert mass >= p - 1e-5
    assert mass - probabilities[kept].min().item() < p + 1e-5  # without its least likely token it would not reach p
    assert (~kept).sum() == 0 or probabilities[kept].min() >= probabilities[~kept].max()


def test_the_file_runs_alone(tmp_path):
    shutil.copy(model_module.__file__, tmp_path / "roclm_model.py")
    done = subprocess.run([sys.executable, "-I", "roclm_model.py"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "(2, 12, 97)" in done.stdout) == (0, True), done.stdout + done.stderr


def test_the_model_file_needs_torch_only(monkeypatch):
    """Names every module it imports: the hand-in ships this file by itself."""
    import ast
    from pathlib import Path

    tree = ast.parse(Path(model_module.__file__).read_text())
    imports = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imports |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    assert imports - set(sys.stdlib_module_names) == {"torch"}
    assert "RocLMForCausalLM" in runpy.run_path(model_module.__file__)
