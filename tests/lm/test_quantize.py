"""`roclab lm quantize`: the rounding against its own definition and against rounding to the nearest, the file against
what it was made of and against llama.cpp's package, the command."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from roclab.core.exceptions import DataError, RocLabError
from roclab.lm.engine.cpu.build import load_library
from roclab.lm.model import RocLMConfig
from roclab.lm.quantize import (
    GROUP,
    LEVELS,
    Rounded,
    calibration_texts,
    choose_scale,
    gptq,
    quantize,
    round_layers,
    written_texts,
)
from roclab.lm.weights.checkpoint import open_checkpoint
from roclab.lm.weights.gguf_tokenizer import END_TOKENS, gguf_entries, tokenizer_from_gguf
from tests.lm.build import LLAMA3_ROPE, peer, write_folder
from tests.test_cli import refused, roclab

TEXT = "the cat and the dog went over the hill and then the other way round, said the third. " * 60


def loss(weight: torch.Tensor, H: torch.Tensor, rounded: torch.Tensor) -> float:
    error = (weight - rounded).double()
    return float(((error @ H.double()) * error).sum())


def nearest(weight: torch.Tensor) -> torch.Tensor:
    """Each group of 32 on its own, all weights alike."""
    rows, ones = weight.view(-1, GROUP), torch.ones(GROUP)
    d, m = choose_scale(rows, ones)
    return (d * ((rows - m) / d).round().clamp(0, LEVELS) + m).view_as(weight)


def inputs(n: int, width: int, seed: int = 0) -> torch.Tensor:
    """Correlated, with a few loud channels, as a trained model's are."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, width // 4, generator=draw) @ torch.randn(width // 4, width, generator=draw)
    return mixed * torch.exp(torch.randn(width, generator=draw)) + 0.1 * torch.randn(n, width, generator=draw)


def test_gptq_beats_the_nearest_step_on_the_same_inputs_and_on_new_ones() -> None:
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(1))
    seen, new = inputs(2000, 128)[:1500], inputs(2000, 128)[1500:]
    rounded = gptq(weight, seen.T @ seen).weight()
    for x in (seen, new):
        assert loss(weight, x.T @ x, rounded) < 0.5 * loss(weight, x.T @ x, nearest(weight))
    assert (weight - rounded).square().sum() > (weight - nearest(weight)).square().sum()  # it pays with the weights


def test_gptq_keeps_what_lies_on_the_grid() -> None:
    draw = torch.Generator().manual_seed(2)
    quants = torch.randint(0, 16, (8, 64), generator=draw).float()
    quants[:, ::32], quants[:, 1::32] = 0, 15
    exact = Rounded(quants, torch.full((8, 2), 0.0625), torch.full((8, 2), -0.5)).weight()
    x = inputs(300, 64)
    torch.testing.assert_close(gptq(exact, x.T @ x).weight(), exact, atol=1e-3, rtol=0)


def test_gptq_without_any_input_and_with_equal_weights() -> None:
    """A channel that is always zero, a matrix that never gets an input, and a group of equal numbers."""
    x = inputs(300, 64)
    x[:, 5] = 0
    weight = torch.randn(8, 64)
    weight[:, 32:] = 0.25
    for H in (x.T @ x, torch.zeros(64, 64)):
        rounded = gptq(weight, H).weight()
        assert rounded.isfinite().all()
        assert (weight - rounded)[:, 32:].abs().max() < 0.3


def test_blocks_are_ggufs() -> None:
    import gguf

    rounded = gptq(torch.randn(16, 96), torch.eye(96))
    blocks = rounded.blocks().reshape(16, -1)
    theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_1)
    np.testing.assert_array_equal(theirs, rounded.weight().numpy())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("float") / "model", peer("qwen3"))


def needs_kernels() -> None:
    if load_library() is None:
        pytest.skip("no C compiler")


KINDS = {
    "qwen3": {}, "qwen2": {}, "llama": {"tie_word_embeddings": True}, "llama biased": {"attention_bias": True},
    "llama 3": {"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 10000.0}},
    "llama stretched": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_holds_the_model(kind: str, tmp_path: Path) -> None:
    """Configuration, tokenizer and weights come back; int8's weights differ by half a step of their group."""
    needs_kernels()
    source = open_checkpoint(write_folder(tmp_path / "float", peer(kind.split()[0], **KINDS[kind])))
    tokenizer = source.load_tokenizer()
    quantize(source, tokenizer, tmp_path / "out.gguf", "int8")
    written = open_checkpoint(tmp_path / "out.gguf")
    for field, value in vars(source.config).items():
        if field not in ("rope_scaling", "pad_token_id", "layer_types", "o_proj_bias"):
            assert getattr(written.config, field) == pytest.approx(value), field
    if source.config.rope_scaling:
        assert written.config.rope_scaling is not None
        assert written.config.rope_scaling["rope_type"] == source.config.rope_scaling["rope_type"]
    assert set(written.tensors) == set(source.tensors)
    for name, tensor in written.tensors.items():
        before, after = source.tensors[name].load(), tensor.load()
        if before.dim() == 1:
            assert torch.equal(before, after), name
        else:
            groups = before.view(-1, GROUP)
            step = groups.abs().amax(1, keepdim=True) / 127
            assert ((groups - after.view(-1, GROUP)).abs() <= 1.3 * step).all(), (
                name
            )  # the best scale may clip a little
    again = written.load_tokenizer()
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert again.control == tokenizer.control
    assert again.eos_token_ids == tokenizer.eos_token_ids
    messages = [{"role": "user", "content": "hi"}]
    assert again.encode_chat(messages) == tokenizer.encode_chat(messages)


def test_int4_is_what_the_rounding_said(folder: Path, tmp_path: Path) -> None:
    needs_kernels()
    source = open_checkpoint(folder)
    tokenizer = source.load_tokenizer()
    texts = calibration_texts(source, tokenizer, TEXT, 2048)
    assert texts.shape == (16, 128)  # the model's context is shorter than a window
    quantize(source, tokenizer, tmp_path / "out.gguf", "int4", lambda: texts)
    written = open_checkpoint(tmp_path / "out.gguf")
    model = source.load_model()
    rounded = dict(round_layers(model, texts))
    assert len(rounded) == 5 * source.config.num_hidden_layers  # all but k_proj and v_proj
    for name, matrix in rounded.items():
        assert torch.equal(written.tensors[name].load(), matrix.weight())
        assert torch.equal(model.get_parameter(name), matrix.weight())
    kinds = {name.split(".")[-2]: tensor.kind for name, tensor in written.tensors.items() if len(tensor.shape) == 2}
    assert {part for part, kind in kinds.items() if kind == "Q8_0"} == {"embed_tokens", "lm_head", "k_proj", "v_proj"}
    assert set(kinds.values()) == {"Q8_0", "Q4_1"}


def test_calibration_brings_the_logits_nearer(folder: Path) -> None:
    source = open_checkpoint(folder)
    draw = torch.Generator().manual_seed(3)
    texts, new = torch.randint(5, 260, (48, 64), generator=draw), torch.randint(5, 260, (8, 64), generator=draw)
    exact, calibrated, plain = (source.load_model() for _ in range(3))
    for name, _ in round_layers(calibrated, texts):
        plain.get_parameter(name).data = nearest(plain.get_parameter(name).data)
    with torch.no_grad():
        wanted = exact(new)
        near, far = ((model(new) - wanted).square().mean() for model in (calibrated, plain))
    assert near < 0.8 * far


def test_texts_the_model_writes(folder: Path) -> None:
    source = open_checkpoint(folder)
    tokenizer = source.load_tokenizer()
    texts = written_texts(source, tokenizer, 600, seed=5)
    assert texts.shape == (600 // 128, 128)
    assert torch.equal(texts, written_texts(source, tokenizer, 600, seed=5))
    assert not torch.equal(texts, written_texts(source, tokenizer, 600, seed=6))
    assert not set(texts[:, 0].tolist()) & set(tokenizer.control.values())


def test_what_gguf_has_no_words_for(folder: Path, tmp_path: Path) -> None:
    source = open_checkpoint(folder)
    tokenizer = source.load_tokenizer()
    odd = {**tokenizer.definition, "pre_tokenizer": {"type": "Whitespace"}}
    tokenizer._definition = odd
    with pytest.raises(RocLabError, match="pre-tokenizer"):
        gguf_entries(tokenizer, source.config)
    needs_kernels()
    source.config = replace(source.config, rope_scaling={**LLAMA3_ROPE, "low_freq_factor": 2.0})
    with pytest.raises(RocLabError, match="rope_scaling"):
        quantize(source, source.load_tokenizer(), tmp_path / "out.gguf", "int8")
    assert list(tmp_path.iterdir()) == []


def test_what_is_checked_before_anything_is_computed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_kernels()
    source = open_checkpoint(folder)
    tokenizer = source.load_tokenizer()

    def texts() -> torch.Tensor:
        raise AssertionError("too early")

    def refused(match: str, path: Path = tmp_path / "new" / "out.gguf") -> None:
        with pytest.raises(RocLabError, match=match):
            quantize(source, tokenizer, path, "int4", texts)
        assert list(tmp_path.rglob("*")) == []

    refused("/proc/no/out.gguf: cannot be written", Path("/proc/no/out.gguf"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        refused("pip install")
    with monkeypatch.context() as patch:
        patch.setenv("ROCLAB_KERNELS", "torch")
        load_library.cache_clear()
        refused("ROCLAB_KERNELS=torch forbids")
    load_library.cache_clear()
    source.config = replace(source.config, intermediate_size=80)
    refused("not a multiple of 32")


@pytest.mark.parametrize("to", ["int4", "int8"])
def test_weights_that_are_no_numbers(to: str, tmp_path: Path) -> None:
    needs_kernels()
    model = peer("qwen3")
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = float("nan")
    source = open_checkpoint(write_folder(tmp_path / "float", model))
    texts = torch.randint(5, 260, (4, 64))
    with pytest.raises(RocLabError, match=r"layers\.1\.mlp\.up_proj.* not finite"):
        quantize(source, source.load_tokenizer(), tmp_path / "out.gguf", to, lambda: texts)
    assert not [p for p in tmp_path.iterdir() if p.is_file()]


def test_end_and_padding_tokens(folder: Path) -> None:
    """No token of the vocabulary becomes a control token, -1 is none, and rows without a token stay so."""
    source = open_checkpoint(folder)
    tokenizer = source.load_tokenizer()
    config = replace(source.config, pad_token_id=-1, eos_token_id=[2, tokenizer.vocab_size - 1, 3])
    entries = gguf_entries(tokenizer, config)
    assert "pad_token_id" not in entries
    assert [entries.get(f"{key}_token_id") for key in END_TOKENS] == [2, 3, None]
    written = tokenizer_from_gguf(
        {
            f"tokenizer.ggml.{key.removeprefix('tokenizer_')}": value
            for key, value in {**entries, "tokens": entries["token_list"], "token_type": entries["token_types"],
                               "merges": entries["token_merges"]}.items()
        },
        "here",
    )  # fmt: skip
    assert len(entries["token_list"]) == config.vocab_size > written.vocab_size == tokenizer.vocab_size
    assert written.id_to_token(config.vocab_size - 1) is None
    assert gguf_entries(written, config)["token_types"] == entries["token_types"]
    assert entries["tokenizer_pre"] == "gpt-2"  # the only name that llama.cpp knows


def test_a_gguf_file_again_and_onto_itself(folder: Path, tmp_path: Path) -> None:
    needs_kernels()
    source = open_checkpoint(folder)
    file = tmp_path / "model.gguf"
    quantize(source, source.load_tokenizer(), file, "int8")
    first = open_checkpoint(file)
    before = {name: tensor.load() for name, tensor in first.tensors.items()}
    quantize(first, first.load_tokenizer(), file, "int8")
    second = open_checkpoint(file)
    for name, weight in before.items():  # int8 again finds the same numbers, but for a scale's last digit
        torch.testing.assert_close(second.tensors[name].load(), weight, atol=2e-3, rtol=2e-2)


def test_a_short_text(folder: Path) -> None:
    source = open_checkpoint(folder)
    with pytest.raises(DataError, match=r"notes\.txt has \d+ tokens: 128 are needed"):
        calibration_texts(source, source.load_tokenizer(), "one two three", 1000, "notes.txt")


def test_the_command(folder: Path, tmp_path: Path) -> None:
    needs_kernels()
    out, text = tmp_path / "small.gguf", tmp_path / "text.txt"
    text.write_text(TEXT)
    command = ["lm", "quantize", out, "--model", folder, "--device", "cpu"]
    done = roclab(*command, "--calibration", text, "--tokens", 1024)
    assert done.returncode == 0, done.stderr
    assert "bits a weight" in done.stdout
    before = out.read_bytes()
    assert "--force replaces it" in refused(roclab(*command))
    assert "--to int3" in refused(roclab(*command, "--force", "--to", "int3"))
    assert "folder" in refused(roclab(*command[:2], tmp_path, *command[3:]))
    assert "--calibration" in refused(roclab(*command, "--force", "--to", "int8", "--calibration", text))
    assert ".gguf" in refused(roclab("lm", "quantize", tmp_path / "x.bin", "--model", folder))
    assert out.read_bytes() == before
    done = roclab(*command, "--force", "--to", "int8")
    assert done.returncode == 0, done.stderr
    done = roclab("lm", "generate", "--model", out, "--prompt", "the", "-n", 4, "--engine", "fast")
    assert done.returncode == 0, done.stderr


def test_configuration_of_the_default_is_qwen3() -> None:
    from roclab.lm.weights.tensors import architecture_of

    assert architecture_of(RocLMConfig()) == "qwen3"
