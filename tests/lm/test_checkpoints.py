"""Checkpoints in every layout give transformers' logits; bad ones give one clear line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from roclab.core.exceptions import CheckpointError
from roclab.lm.model import RocLMConfig, RocLMForCausalLM, create_roclm_model
from roclab.lm.weights.checkpoint import open_checkpoint
from roclab.lm.weights.tensors import SUPPORTED

from .build import (
    LLAMA3_ROPE,
    TINY,
    assert_one_line,
    peer,
    peer_logits,
    roclab,
    write_folder,
    write_gguf,
    write_tokenizer,
)

pytest.importorskip("transformers")

IDS = torch.tensor([[5, 17, 250, 3, 99, 99, 42, 7, 260, 0, 11, 128], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]])
YARN_ROPE = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0,
}  # fmt: skip
LINEAR_ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}

MODELS = {
    "qwen3": ("qwen3", {}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True}),
    "llama, a key-value head per head": ("llama", {"num_key_value_heads": 4}),
    "llama with llama3 rope": ("llama", {"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500000.0}}),
    "llama with linear rope": ("llama", {"rope_parameters": LINEAR_ROPE}),
    "llama with another rope base": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}),
    "mistral": ("mistral", {}),
    "mistral with a window": ("mistral", {"sliding_window": 5}),
    "qwen2 with a window in its last layer": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3 with yarn rope": ("qwen3", {"rope_parameters": YARN_ROPE}),
    "llama with yarn rope": ("llama", {"rope_parameters": YARN_ROPE}),
}  # fmt: skip


def gap(checkpoint_path: Path, model) -> float:
    ours = open_checkpoint(checkpoint_path).load_model()
    with torch.no_grad():
        return (ours(IDS) - peer_logits(model, IDS)).abs().max().item()


# ── The same logits ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shards", ["one file", "many files"])
@pytest.mark.parametrize("name", MODELS)
def test_a_hugging_face_folder_gives_transformers_logits(name, shards, tmp_path):
    kind, changes = MODELS[name]
    model = peer(kind, **changes)
    write_folder(tmp_path, model, **({"max_shard_size": "60KB"} if shards == "many files" else {}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards == "many files")
    assert gap(tmp_path, model) <= 1e-4


@pytest.mark.parametrize("name", [n for n in MODELS if "mistral" not in n and "llama3" not in n and "window" not in n])
def test_a_gguf_file_gives_transformers_logits(name, tmp_path):
    kind, changes = MODELS[name]
    model = peer(kind, **changes)
    path = write_gguf(tmp_path / "model.gguf", model)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.tie_word_embeddings == model.config.tie_word_embeddings
    assert gap(path, model) <= 1e-4
    assert gap(tmp_path, model) <= 1e-4  # the folder, with this one file in it


def llama3_divisors(theta: float, head_dim: int) -> np.ndarray:
    """rope_freqs.weight, by the steps of llama.cpp's converter."""
    scaling = LLAMA3_ROPE
    low_wavelength = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
    high_wavelength = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
    divisors = []
    for frequency in 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < high_wavelength:
            divisors.append(1.0)
        elif wavelength > low_wavelength:
            divisors.append(scaling["factor"])
        else:
            smooth = scaling["original_max_position_embeddings"] / wavelength - scaling["low_freq_factor"]
            smooth /= scaling["high_freq_factor"] - scaling["low_freq_factor"]
            divisors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(divisors, np.float32)


def test_a_gguf_file_with_rope_freqs_gives_transformers_logits(tmp_path):
    model = peer("llama", rope_parameters={**LLAMA3_ROPE, "rope_theta": 500000.0})
    path = write_gguf(tmp_path / "a.gguf", model, rope_freqs=llama3_divisors(500000.0, 16))
    assert open_checkpoint(path).config.rope_scaling["factor"] == 8.0
    assert gap(path, model) <= 1e-4


def test_rope_freqs_of_another_kind_are_refused(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", peer("llama"), rope_freqs=np.linspace(1, 3, 8))
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
        open_checkpoint(path)


def test_an_older_configuration_with_rope_scaling_means_the_same(tmp_path):
    model = peer("llama", rope_parameters=LINEAR_ROPE)
    write_folder(tmp_path, model)
    edit(tmp_path / "config.json", rope_parameters=None, rope_theta=10000.0,
         rope_scaling={"type": "linear", "factor": 4.0})  # fmt: skip
    assert gap(tmp_path, model) <= 1e-4


def test_half_precision_checkpoints_are_read_as_float32_and_in_any_dtype(tmp_path):
    from transformers import AutoModelForCausalLM

    write_folder(tmp_path, peer("qwen3").to(torch.bfloat16))
    checkpoint = open_checkpoint(tmp_path)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        ours = checkpoint.load_model(dtype)
        assert {p.dtype for p in ours.parameters()} == {dtype}
    # Read anew: a model cast as a whole would have rounded rotary frequencies.
    assert gap(tmp_path, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()) <= 1e-4


def test_a_second_copy_of_the_weights_beside_model_safetensors_is_left_alone(tmp_path):
    model = peer("mistral")
    write_folder(tmp_path, model)
    save_file({"layers.0.attention.wq.weight": torch.zeros(2, 2)}, tmp_path / "consolidated.safetensors")
    assert gap(tmp_path, model) <= 1e-4


def test_end_tokens_come_from_both_configuration_files(tmp_path):
    write_folder(tmp_path, peer("llama"))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    assert open_checkpoint(tmp_path).config.eos_token_ids == [2, 1]


# ── The course's layout ─────────────────────────────────────────────────────────────────────────────────────────


def course_folder(folder: Path, **changes) -> RocLMForCausalLM:
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings")  # fmt: skip
    values = {key: TINY[key] for key in keys} | {"head_dim": 32} | changes
    torch.manual_seed(3)
    model = RocLMForCausalLM(RocLMConfig(**values)).eval()
    torch.save(model.state_dict(), folder / "custom_model_state_dict.pth")
    (folder / "model_config.json").write_text(json.dumps(values))
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_the_course_layout_loads_by_folder_and_by_file(tied, tmp_path):
    model = course_folder(tmp_path, tie_word_embeddings=tied)
    for path in (tmp_path, tmp_path / "custom_model_state_dict.pth"):
        ours = open_checkpoint(path).load_model()
        assert ours.state_dict().keys() == model.state_dict().keys()
        with torch.no_grad():
            assert torch.equal(ours(IDS), model(IDS))


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("layout", ["zip", "bare pickle", "inside a tensor dict"])
def test_a_malicious_pickle_is_refused_and_not_executed(layout, tmp_path):
    course_folder(tmp_path)
    file, proof = tmp_path / "custom_model_state_dict.pth", tmp_path / "executed"
    if layout == "zip":
        torch.save(Evil(proof), file)
    elif layout == "bare pickle":
        file.write_bytes(pickle.dumps(Evil(proof)))
    else:
        torch.save({"model.norm.weight": torch.ones(2), "extra": Evil(proof)}, file)
    with pytest.raises(CheckpointError, match="not a plain state dict") as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
    assert "save model.state_dict()" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice how to run it after all
    assert not proof.exists()


def test_a_course_configuration_with_unknown_keys_names_them(tmp_path):
    course_folder(tmp_path)
    edit(tmp_path / "model_config.json", hiden_size=3)
    with pytest.raises(CheckpointError, match="hiden_size"):
        open_checkpoint(tmp_path)


def test_a_damaged_state_dict_is_reported(tmp_path):
    course_folder(tmp_path)
    file = tmp_path / "custom_model_state_dict.pth"
    whole = file.read_bytes()
    for cut in (0, 10, 1000, len(whole) // 2, len(whole) - 10):
        file.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="damaged") as caught:
            open_checkpoint(tmp_path)
        assert "\n" not in str(caught.value)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("hello.txt", "not torch")
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(tmp_path)


# ── Bad input ───────────────────────────────────────────────────────────────────────────────────────────────────


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change) -> None:
    """`change` gets the dict of tensors and alters it."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


DOWN = "model.layers.1.mlp.down_proj.weight"


def truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


# What is done to a good qwen3 folder → words the one line must hold.
BAD_FOLDERS = {
    "a missing tensor": (
        lambda f: edit_tensors(f, lambda t: t.pop(DOWN)),
        [DOWN, "(64, 96)", "missing"],
    ),
    "a tensor of the wrong shape": (
        lambda f: edit_tensors(f, lambda t: t.update({DOWN: torch.zeros(64, 95)})),
        [DOWN, "(64, 95)", "(64, 96)"],
    ),
    "a tensor of whole numbers": (
        lambda f: edit_tensors(f, lambda t: t.update({DOWN: torch.zeros(64, 96, dtype=torch.int8)})),
        [DOWN, "whole numbers (int8)", "GGUF"],
    ),
    "an unknown tensor": (
        lambda f: edit_tensors(f, lambda t: t.update({"model.layers.0.extra.weight": torch.zeros(2)})),
        ["model.layers.0.extra.weight", "not part of this architecture"],
    ),
    "an unsupported architecture": (
        lambda f: edit(f / "config.json", model_type="mamba"),
        ["'mamba'", "not supported", *SUPPORTED],
    ),
    "more layers than there are": (
        lambda f: edit(f / "config.json", num_hidden_layers=10**9, layer_types=None),
        ["model.layers.999999999", "missing"],
    ),
    "a head size without end": (lambda f: edit(f / "config.json", head_dim=10**12), ["q_proj", "(128, 64)"]),
    "a size that is no number": (lambda f: edit(f / "config.json", hidden_size="wide"), ["hidden_size", "wide"]),
    "a rope base of zero": (
        lambda f: edit(f / "config.json", rope_parameters=None, rope_theta=0),
        ["rope_theta must be a positive number: got 0"],
    ),
    "a head count of zero": (lambda f: edit(f / "config.json", num_attention_heads=0, head_dim=None), ["config.json"]),
    "a configuration without a size": (
        lambda f: (f / "config.json").write_text('{"model_type": "qwen3", "vocab_size": 300}'),
        ["hidden_size", "missing"],
    ),
    "a vocabulary larger than the embedding": (
        lambda f: (
            edit(f / "config.json", vocab_size=260),
            edit_tensors(f, lambda t: t.update({n: t[n][:260] for n in t if t[n].shape[0] == 300})),
        ),
        ["264 tokens", "260 rows"],
    ),
    "truncated safetensors": (lambda f: truncate(f / "model.safetensors", 0.7), ["model.safetensors", "truncated"]),
    "safetensors cut in the header": (lambda f: truncate(f / "model.safetensors", 0.001), ["truncated"]),
    "empty safetensors": (lambda f: truncate(f / "model.safetensors", 0), ["model.safetensors", "truncated"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["no .safetensors file"]),
    "bad JSON": (lambda f: truncate(f / "config.json", 0.5), ["config.json", "JSON"]),
    "JSON of another kind": (lambda f: (f / "config.json").write_text("[1, 2]"), ["config.json", "object"]),
    "JSON in another encoding": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), ["config.json", "JSON"]),
    "bad JSON in the tokenizer": (lambda f: truncate(f / "tokenizer.json", 0.5), ["tokenizer.json", "JSON"]),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ["tokenizer.json", "missing"]),
    "an index without a weight map": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"metadata": {}}'),
        ["model.safetensors.index.json", "weight_map"],
    ),
    "sliding layers": (
        lambda f: edit(f / "config.json", layer_types=["full_attention", "sliding_attention"]),
        ["layer_types", "sliding_attention"],
    ),
    "unsupported rope": (
        lambda f: edit(f / "config.json", rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}),
        ["rope_scaling", "'yarn'", "original_max_position_embeddings", "up to 128 tokens"],
    ),
    "rope scaling without its factor": (
        lambda f: edit(f / "config.json", rope_parameters={"rope_type": "linear"}),
        ["rope_scaling", "factor", "linear"],
    ),
    "rope scaling that is no object": (lambda f: edit(f / "config.json", rope_scaling="linear"), ["rope_scaling"]),
    "rope on a part of each head": (lambda f: edit(f / "config.json", partial_rotary_factor=0.5), ["0.5"]),
    "another activation": (lambda f: edit(f / "config.json", hidden_act="gelu"), ["hidden_act", "gelu"]),
    "quantized weights": (
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "fp8"}),
        ["quantization_config"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("good"), peer("qwen3"))


@pytest.fixture(scope="module")
def good_gguf(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("good") / "model.gguf", peer("llama"))


def open_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    checkpoint.load_tokenizer()
    checkpoint.load_model()


def open_or_complain(path: Path) -> None:
    """Anything but a model or the one error that may come is raised."""
    message = ""
    try:
        open_all(path)
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_folder_gives_one_line_that_names_what_and_where(name, good_folder, tmp_path):
    damage, words = BAD_FOLDERS[name]
    folder = tmp_path / "model"
    shutil.copytree(good_folder, folder)
    open_all(folder)
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        open_all(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_missing_shard_is_named(tmp_path):
    write_folder(tmp_path, peer("qwen3"), max_shard_size="60KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"{lost.name}: missing"):
        open_checkpoint(tmp_path)


def test_folders_without_a_single_model_say_what_was_looked_for(tmp_path, good_gguf):
    with pytest.raises(CheckpointError, match=r"no model here .*config\.json"):
        open_checkpoint(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(good_gguf, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.architecture": "mamba"}, ["'mamba'", *SUPPORTED]),
        ({"llama.rope.scaling.type": "longrope"}, ["'longrope'", "linear", "yarn", "up to 128 tokens"]),
        ({"llama.rope.dimension_count": 8}, ["8 of 16"]),
        ({"llama.block_count": 4 * 10**9}, ["model.layers.3999999999", "missing"]),
        ({"llama.attention.key_length": 4 * 10**9, "llama.rope.dimension_count": None}, ["q_proj", "(64, 64)"]),
        ({"llama.block_count": 1}, ["not part of this architecture"]),
        ({"llama.feed_forward_length": 95}, ["(96, 64)", "(95, 64)"]),
        ({"llama.attention.head_count": 0}, ["metadata"]),
        ({"llama.embedding_length": "wide"}, ["metadata"]),
        ({"llama.context_length": None}, ["llama.context_length"]),
        ({"split.count": 3}, ["3 parts"]),
        ({"tokenizer.ggml.pre": "klingon"}, ["'klingon'", "smollm", "qwen2", "llama-bpe", "gpt2", "--tokenizer"]),
        ({"tokenizer.ggml.model": "t5"}, ["'t5'", "gpt2"]),
        ({"tokenizer.ggml.merges": None}, ["tokenizer.ggml.merges", "missing"]),
        ({"tokenizer.ggml.token_type": [1, 2]}, ["token types"]),
        ({"tokenizer.ggml.tokens": 5}, ["tokenizer.ggml.tokens"]),
        ({"tokenizer.ggml.tokens": ["x"] * 301}, []),
        ({"tokenizer.ggml.merges": ["nosuch token"]}, ["tokenizer"]),
    ],
    ids=str,
)
def test_bad_gguf_metadata_gives_one_line(metadata, words, tmp_path):
    path = write_gguf(tmp_path / "bad.gguf", peer("llama"), changes=metadata)
    with pytest.raises(CheckpointError) as caught:
        open_all(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_to_a_gguf_model_gives_a_clear_error_or_a_model(data, good_gguf, tmp_path):
    content = bytearray(good_gguf.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, 12000))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    open_or_complain(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_to_safetensors_gives_a_clear_error_or_a_model(data, good_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(good_folder, folder, dirs_exist_ok=True)
    content = bytearray((good_folder / "model.safetensors").read_bytes())
    header = struct.unpack("<Q", content[:8])[0] + 8
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
    (folder / "model.safetensors").write_bytes(content)
    open_or_complain(folder)


# ── Through the command line ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name", ["a tensor of the wrong shape", "an unsupported architecture", "truncated safetensors"]
)
def test_the_command_line_prints_one_line_and_exits_with_2(name, good_folder, tmp_path):
    damage, words = BAD_FOLDERS[name]
    folder = tmp_path / "model"
    shutil.copytree(good_folder, folder)
    damage(folder)
    assert_one_line(roclab("lm", "generate", "--model", str(folder), "--prompt", "x"), str(folder), *words)


def test_the_command_line_reports_a_truncated_gguf_file_and_a_pickle(good_gguf, tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(good_gguf.read_bytes()[:-5000])
    assert_one_line(roclab("lm", "generate", "--model", str(path), "--prompt", "x"), str(path), "ends at byte")
    course_folder(tmp_path)
    torch.save(Evil(tmp_path / "executed"), tmp_path / "custom_model_state_dict.pth")
    assert_one_line(roclab("lm", "generate", "--model", str(tmp_path), "--prompt", "x"), "not a plain state dict")
    assert not (tmp_path / "executed").exists()


def test_the_command_line_reports_a_context_that_is_too_short(good_gguf):
    result = roclab("lm", "generate", "--model", str(good_gguf), "--prompt", "x" * 100, "--max-new-tokens", "100")
    assert_one_line(result, "100", "128")
    # Who names no number gets what there is room for, not a refusal of a number that nobody asked for.
    result = roclab("lm", "generate", "--model", str(good_gguf), "--prompt", "x" * 100, "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert 1 <= answer["new_tokens"] <= 128 - answer["prompt_tokens"]


def test_the_command_line_generates_from_every_layout(good_folder, good_gguf, tmp_path):
    course_folder(tmp_path)
    write_tokenizer(tmp_path)
    for path in (good_folder, good_gguf, tmp_path):
        result = roclab("lm", "generate", "--model", str(path), "--prompt", "the x", "--max-new-tokens", "5", "--json")
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        assert answer["prompt_tokens"] == 3
        assert 1 <= answer["new_tokens"] <= 5


def test_an_old_pth_that_is_no_zip_loads_too(tmp_path):
    model = create_roclm_model({"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
                               | {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8})  # fmt: skip
    (tmp_path / "model_config.json").write_text(json.dumps({**vars(model.config)}))
    path = tmp_path / "custom_model_state_dict.pth"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(open_checkpoint(path).load_model()(ids), model.eval()(ids))
