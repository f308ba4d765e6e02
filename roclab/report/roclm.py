"""What the report shows of RocLM, computed with its own functions: shapes, KV cache, rotary positions, the causal mask,
agreement with transformers, and how fast it is here.

    facts = examine("smollm2-135m", qwen3_tokenizer)     # all of it; without a model what needs no weights
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from roclab.core.progress import track
from roclab.core.provenance import provenance
from roclab.lm.generate import Timings, engine_of, stream
from roclab.lm.loading import load
from roclab.lm.model import (
    KVCache,
    RocLMAttention,
    RocLMConfig,
    RocLMForCausalLM,
    RocLMRotaryEmbedding,
    apply_rotary_pos_emb,
    create_roclm_model,
)
from roclab.lm.settings import SamplingParams
from roclab.lm.text.tokenizer import Tokenizer
from roclab.lm.weights.checkpoint import Checkpoint, empty_model, open_checkpoint
from roclab.lm.weights.huggingface_writer import transformers_config
from roclab.report.conversations import thinking_prompts

Facts = dict[str, Any]
TEXT = "The old man looked at the sea, and the sea was calm."
SHOWN = 24  # tokens of it in a picture
BEGINNINGS = (0, 100, 1000)  # positions at which a stretch of text begins
DISTANCES = 48
SECONDS, TOKENS = 5.0, 48  # of measured generation, whichever ends first
RANDOM = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "head_dim": 16,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip


def examine(name: str | None, thinker: Tokenizer | None = None) -> Facts:
    """The facts as plain data. `name`: a model as `open_checkpoint` takes it; None: Qwen3-0.6B's shape is drawn, which
    is RocLM's default, attention is that of a small model with random weights, and nothing is compared or timed.
    `thinker`: a tokenizer whose template has a thinking mode. Raises RocLabError for a model that cannot be opened.
    """
    checkpoint = open_checkpoint(name) if name else None
    config = checkpoint.config if checkpoint else RocLMConfig()
    wanted = {
        "attention": lambda: _attention_of(checkpoint),
        "rope": lambda: rope(config),
        "agreement": lambda: agreement(checkpoint) if checkpoint else None,
        "speed": lambda: [speed(checkpoint, engine) for engine in ("auto", "torch")] if checkpoint else [],
    }
    return {
        "model": name,
        "config": asdict(config),
        "parameters": sum(parameter.numel() for parameter in empty_model(config).parameters()),
        "cache": cache(config),
        "thinking": thinking_prompts(thinker) if thinker else None,
        "machine": provenance(0)["machine"],
        **{key: wanted[key]() for key in track(list(wanted), "looking into RocLM")},
    }


def cache(config: RocLMConfig, dtype: torch.dtype = torch.bfloat16) -> Facts:
    """Bytes of the KV cache for one token and for a whole context, with the model's key-value heads and with one for
    every query head (multi-head attention); the tensors are RocLM's own, on a device without memory."""

    def size(tokens: int, kv_heads: int) -> int:
        shape = replace(config, num_key_value_heads=kv_heads)
        return KVCache(shape, 1, tokens, device="meta", dtype=dtype).kv.nbytes

    heads, kv_heads, context = config.num_attention_heads, config.num_key_value_heads, config.max_position_embeddings
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "context": context,
        "grouped": {"token": size(1, kv_heads), "context": size(context, kv_heads)},
        "multi_head": {"token": size(1, heads), "context": size(context, heads)},
    }


def rope(config: RocLMConfig) -> Facts:
    """Scores q·k of one query and one key vector at all distances, the query's position beginning at each of
    BEGINNINGS; and how far scores of the same distance differ."""
    embedding = RocLMRotaryEmbedding(config)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(config.head_dim, generator=generator) for _ in range(2))
    scores = {}
    for begin in BEGINNINGS:
        positions = torch.arange(begin, begin + DISTANCES)[None]
        cos, sin = embedding(q, positions)
        everywhere = [x.expand(1, 1, DISTANCES, -1) for x in (q, k)]  # (1, 1, T, C)
        q_m, k_n = apply_rotary_pos_emb(everywhere[0], everywhere[1], cos, sin)
        scores[begin] = (q_m @ k_n.transpose(-2, -1))[0, 0]  # (T, T): query m, key n
    by_distance = {begin: [_diagonal(scores[begin], d) for d in range(DISTANCES)] for begin in BEGINNINGS}
    apart = {
        begin: max(float((row - by_distance[0][d][0]).abs().max()) for d, row in enumerate(rows))
        for begin, rows in by_distance.items()
    }
    return {
        "head_dim": config.head_dim, "rope_theta": config.rope_theta,
        "square": _rounded(scores[0], 4),
        "by_distance": {str(begin): [round(float(row[0]), 4) for row in rows] for begin, rows in by_distance.items()},
        "apart": {str(begin): value for begin, value in apart.items()},
        "largest": float(scores[0].abs().max()),
    }  # fmt: skip


def _diagonal(scores: Tensor, distance: int) -> Tensor:
    """All scores whose query is `distance` tokens behind its key."""
    return scores.diagonal(-distance)


def _rounded(values: Tensor, digits: int) -> list[list[float]]:
    return [[round(x, digits) for x in row] for row in values.tolist()]


def _attention_of(checkpoint: Checkpoint | None) -> Facts:
    if checkpoint is None:
        torch.manual_seed(0)
        model = create_roclm_model(RANDOM).eval()
        return attention(model, list(range(12))) | {"tokens": [f"t{i}" for i in range(12)], "random": True}
    tokenizer = checkpoint.load_tokenizer()
    ids = tokenizer.encode(TEXT)[: min(SHOWN, checkpoint.config.max_position_embeddings)]
    shown = [tokenizer.decode([i], control=True) for i in ids]
    return attention(checkpoint.load_model(), ids) | {"tokens": shown, "random": False}


@torch.inference_mode()
def attention(model: RocLMForCausalLM, ids: Sequence[int]) -> Facts:
    """Attention weights, a mean over the heads, of the first, a middle and the last layer; and over all layers and
    heads the largest weight on a later token, the largest distance of a row's sum from 1, and the mean share of the
    first token (of all rows but its own)."""
    before, model.config.attn_implementation = model.config.attn_implementation, "eager"
    model(torch.tensor([list(ids)]))
    model.config.attn_implementation = before
    modules = [module for module in model.modules() if isinstance(module, RocLMAttention)]
    maps = torch.stack([m.attention_map[0] for m in modules if m.attention_map is not None])  # (L, H, T, T)
    last = len(modules) - 1
    return {
        "layers": {str(i + 1): _rounded(maps[i].mean(0), 6) for i in sorted({0, last // 2, last})},
        "heads": maps.shape[1],
        "future": float(maps.triu(1).max()),
        "sum_off": float((maps.sum(-1) - 1).abs().max()),
        "first": float(maps[:, :, 1:, 0].mean()),
        "first_if_even": float((1 / torch.arange(2.0, maps.shape[2] + 1)).mean()),
    }


@torch.inference_mode()
def agreement(checkpoint: Checkpoint) -> Facts | None:
    """The same weights in float32 in transformers' own model and in RocLM, on one text: how far the logits are apart
    and how often both rate the same token highest. None where transformers is not installed or lacks the architecture.
    """
    if find_spec("transformers") is None:
        return None
    from transformers import AutoConfig, AutoModelForCausalLM

    model, described = checkpoint.load_model(), transformers_config(checkpoint.config, torch.float32)
    peer = AutoModelForCausalLM.from_config(AutoConfig.for_model(**described)).eval()
    peer.load_state_dict(model.state_dict(), strict=True)
    ids = torch.tensor([checkpoint.load_tokenizer().encode(TEXT)[: checkpoint.config.max_position_embeddings]])
    expected, rows = peer(ids).logits, {}
    for implementation in ("eager", "sdpa"):
        model.config.attn_implementation = implementation
        found = model(ids)
        same = (found.argmax(-1) == expected.argmax(-1)).sum()
        rows[implementation] = {"largest": float((found - expected).abs().max()), "same": int(same)}
    return {
        "peer": type(peer).__name__, "version": metadata.version("transformers"), "positions": ids.shape[1],
        "vocabulary": expected.shape[-1], "largest_logit": float(expected.abs().max()), "rows": rows,
    }  # fmt: skip


def speed(checkpoint: Checkpoint, engine: str) -> Facts:
    """Tokens a second of reading a prompt and of writing on, one request, greedy; a few seconds at most."""
    runner, tokenizer = load(checkpoint, engine)
    engine_of(runner).prompt_lookup = False  # the text repeats itself: drafts from it would be right
    half = checkpoint.config.max_position_embeddings // 2
    prompt, timings, began = tokenizer.encode(TEXT * 8)[:half], Timings(), time.perf_counter()
    params = SamplingParams(max_new_tokens=min(TOKENS, half), ignore_eos=True)
    for _ in stream(runner, tokenizer, [prompt], params, timings):
        if time.perf_counter() - began > SECONDS and timings.decode_tokens:
            break
    return {
        "engine": runner.name, "prompt_tokens": timings.prefill_tokens, "new_tokens": timings.decode_tokens,
        "prefill": timings.prefill_tokens_per_second, "decode": timings.decode_tokens_per_second,
        "weights": str(runner.dtype or "quantized").removeprefix("torch."),
    }  # fmt: skip
