"""Models out: Hugging Face folders and GGUF files of floats, each read back and opened by transformers; and models that
never were in a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.cpu.build import load_library
from roclab.lm.engine.cpu.runner import CPURunner
from roclab.lm.engine.runner import score
from roclab.lm.loading import load
from roclab.lm.model import RocLMConfig, RocLMForCausalLM
from roclab.lm.text.tokenizer import Tokenizer
from roclab.lm.weights.checkpoint import Checkpoint, open_checkpoint
from roclab.lm.weights.gguf_writer import write_gguf_floats
from roclab.lm.weights.huggingface_writer import write_huggingface
from tests.lm.build import (
    LLAMA3_ROPE,
    assert_one_line,
    peer,
    peer_logits,
    roclab,
    tokenizer_definition,
    write_folder,
    write_gguf,
)

pytest.importorskip("transformers")

IDS = torch.tensor([[5, 17, 250, 3, 99, 99, 42, 7, 260, 0, 11, 128], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]])
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
MODELS = {
    "qwen3": ("qwen3", {}),
    "qwen3 with biases, tied": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True}),
    "llama with llama3 rope": ("llama", {"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500000.0}}),
    "llama with linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "qwen3 with yarn rope": ("qwen3", {"rope_parameters": YARN_ROPE}),
    "mistral with a window": ("mistral", {"sliding_window": 5}),
    "qwen2 with a window in its last layer": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
}  # fmt: skip
TEXTS = ["the other", "  a\n\n b\t12345", "naïve 🙂 東京", ""]
CHAT = [{"role": "user", "content": "the <|im_end|> of it"}, {"role": "assistant", "content": "ok"}]


def export(checkpoint: Checkpoint, folder: Path, dtype: str = "float32", **options) -> Checkpoint:
    write_huggingface(folder, checkpoint.config, checkpoint.load_tokenizer(), checkpoint.tensors, dtype, **options)
    return open_checkpoint(folder)


def assert_same_model(written: Checkpoint, source: Checkpoint) -> None:
    assert set(written.tensors) == set(source.tensors)
    for name, tensor in source.tensors.items():
        assert torch.equal(written.tensors[name].load(), tensor.load()), name
    with torch.no_grad():
        assert torch.equal(written.load_model()(IDS), source.load_model()(IDS))


def assert_same_tokenizer(ours: Tokenizer, other: Tokenizer) -> None:
    assert [ours.encode(text) for text in TEXTS] == [other.encode(text) for text in TEXTS]
    assert ours.encode_chat(CHAT) == other.encode_chat(CHAT)
    assert ours.render_chat(CHAT) == other.render_chat(CHAT)
    assert ours.control == other.control
    assert ours.eos_token_ids == other.eos_token_ids
    assert (ours.bos_token_id, ours.adds_bos) == (other.bos_token_id, other.adds_bos)


@pytest.mark.parametrize("shards", ["one file", "many files"])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_opens_the_folder_and_gives_the_same_logits(name, shards, tmp_path):
    from transformers import AutoModelForCausalLM

    kind, changes = MODELS[name]
    model = peer(kind, **changes)
    source = open_checkpoint(write_folder(tmp_path / "source", model))
    written = export(source, tmp_path / "out", **({"shard_bytes": 60_000} if shards == "many files" else {}))
    assert ((tmp_path / "out" / "model.safetensors.index.json").exists()) == (shards == "many files")
    assert_same_model(written, source)
    kinds = source.config.layer_types
    assert written.config == replace(source.config, layer_types=kinds if len(set(kinds or [])) > 1 else None)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert again.config.model_type == kind
    assert (peer_logits(again, IDS) - peer_logits(model, IDS)).abs().max() <= 1e-4
    for file in ("tokenizer.json", "tokenizer_config.json"):  # the original ones
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "source" / file).read_bytes()


@pytest.mark.parametrize("block_type", [None, "Q8_0"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_gguf_file_becomes_a_folder_with_a_tokenizer(kind, block_type, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pytest.importorskip("gguf")
    source = open_checkpoint(write_gguf(tmp_path / "model.gguf", peer(kind), block_type=block_type))
    written = export(source, tmp_path / "out")
    assert_same_model(written, source)
    tokenizer, theirs = source.load_tokenizer(), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert_same_tokenizer(written.load_tokenizer(), tokenizer)
    assert [theirs(text)["input_ids"] for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    plain = [{"role": "user", "content": "the other"}]
    chat = theirs.apply_chat_template(plain, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert chat == tokenizer.encode_chat(plain)
    assert theirs("<|im_start|>the<|im_end|>")["input_ids"][::2] == [1, 2]  # control tokens, as transformers has them
    assert theirs.eos_token_id == tokenizer.eos_token_ids[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        assert (peer_logits(model, IDS) - source.load_model()(IDS)).abs().max() <= 1e-4


def test_the_real_model_and_its_tokenizer(smollm_path, tmp_path):
    from transformers import AutoTokenizer

    source = open_checkpoint(smollm_path)
    written = export(source, tmp_path / "out", "auto")
    assert {tensor.kind for tensor in written.tensors.values()} == {"F16"}  # of quantized weights
    tokenizer, theirs = source.load_tokenizer(), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert_same_tokenizer(written.load_tokenizer(), tokenizer)
    assert [theirs(text)["input_ids"] for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    name = "model.layers.29.mlp.down_proj.weight"
    assert torch.equal(written.tensors[name].load(), source.tensors[name].load(torch.float16).float())


def test_a_tokenizer_that_adds_a_bos_and_several_end_tokens(tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    model = RocLMForCausalLM(small(eos_token_id=[2, 4]))
    tokenizer = Tokenizer(
        tokenizer_definition(), bos_token="<|endoftext|>", eos_tokens=["<|im_end|>", "<think>"], adds_bos=True
    )
    written = export(Checkpoint.of(model, tokenizer), tmp_path / "out")
    assert written.load_tokenizer().adds_bos
    assert written.config.eos_token_ids == [2, 4, 3]
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 4, 3]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("the")["input_ids"] == tokenizer.encode("the")
    assert theirs("the")["input_ids"][0] == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_gguf_file_of_floats(kind, dtype, tmp_path):
    pytest.importorskip("gguf")
    source = open_checkpoint(write_folder(tmp_path / "source", peer(kind)))
    tokenizer, path = source.load_tokenizer(), tmp_path / "out.gguf"
    write_gguf_floats(path, source.config, tokenizer, source.tensors, dtype)
    written = open_checkpoint(path)
    assert_same_tokenizer(written.load_tokenizer(), tokenizer)
    for name, tensor in source.tensors.items():
        stored = torch.float32 if len(tensor.shape) == 1 else getattr(torch, dtype)
        assert torch.equal(written.tensors[name].load(), tensor.load(stored).float()), name
    with pytest.raises(RocLabError, match="there already"):
        write_gguf_floats(path, source.config, tokenizer, source.tensors)


def test_a_gguf_file_keeps_yarn_and_refuses_a_window(tmp_path):
    source = open_checkpoint(write_folder(tmp_path / "a", peer("qwen3", rope_parameters=YARN_ROPE)))
    write_gguf_floats(tmp_path / "a.gguf", source.config, source.load_tokenizer(), source.tensors)
    assert_same_model(open_checkpoint(tmp_path / "a.gguf"), source)
    source = open_checkpoint(write_folder(tmp_path / "b", peer("mistral", sliding_window=5)))
    with pytest.raises(RocLabError, match="sliding window"):
        write_gguf_floats(tmp_path / "b.gguf", source.config, source.load_tokenizer(), source.tensors)
    assert not (tmp_path / "b.gguf").exists()


def test_floats_are_written_as_they_are_stored_unless_told(tmp_path):
    source = open_checkpoint(write_folder(tmp_path / "source", peer("llama").to(torch.bfloat16)))
    assert {t.kind for t in export(source, tmp_path / "a", "auto").tensors.values()} == {"BF16"}
    assert json.loads((tmp_path / "a" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert {t.kind for t in export(source, tmp_path / "b", "float16").tensors.values()} == {"F16"}


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    model = RocLMForCausalLM(small())
    tokenizer = Tokenizer(tokenizer_definition())
    source, out = Checkpoint.of(model, tokenizer), tmp_path / "out"
    model.model.norm.weight.data[0] = 1e6
    with pytest.raises(RocLabError, match=r"model\.norm\.weight.*float16.*--dtype"):
        export(source, out, "float16")
    with pytest.raises(RocLabError, match="--dtype int3"):
        export(source, out, "int3")
    odd = replace(model.config, o_proj_bias=True)
    with pytest.raises(RocLabError, match="bias on o_proj"):
        write_huggingface(out, odd, tokenizer, source.tensors)
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    export(source, out)  # an empty folder is as good as none
    with pytest.raises(RocLabError, match="not an empty folder"):
        export(source, out)


def test_the_command(tmp_path):
    source = write_folder(tmp_path / "source", peer("qwen3"))
    done = roclab("lm", "export", str(tmp_path / "out"), "--model", str(source))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "out")
    assert_same_model(open_checkpoint(tmp_path / "out"), open_checkpoint(source))
    assert_one_line(roclab("lm", "export", str(tmp_path / "out"), "--model", str(source)), "not an empty folder")
    assert_one_line(roclab("lm", "export", str(tmp_path / "x"), "--model", str(source), "--format", "onnx"), "hf, gguf")
    assert_one_line(
        roclab("lm", "export", str(tmp_path / "x.safetensors"), "--model", str(source), "--format", "gguf"), ".gguf"
    )


# ── Models in memory ────────────────────────────────────────────────────────────────────────────────────────────


def small(**changes) -> RocLMConfig:
    values = {
        "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 128,
        "bos_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip
    return RocLMConfig(**values | changes)


def test_a_model_in_memory_loads_and_keeps_its_weights_to_itself():
    model = RocLMForCausalLM(small()).eval()
    checkpoint = Checkpoint.of(model, Tokenizer(tokenizer_definition()))
    with torch.no_grad():
        before = model(IDS)
        loaded = checkpoint.load_model()
        model.model.norm.weight.zero_()  # training goes on
        assert torch.equal(loaded(IDS), before)
    assert checkpoint.load_tokenizer().vocab_size == 264


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_in_memory_runs_on_the_kernels(tied, tmp_path):
    if load_library() is None:
        pytest.skip("no C compiler")
    torch.manual_seed(3)
    model = RocLMForCausalLM(small(tie_word_embeddings=tied)).eval()
    with torch.no_grad():
        for weight in model.parameters():  # what int8 holds exactly: whole numbers times a power of two
            if weight.ndim == 2:
                weight.copy_(torch.randint(-127, 128, weight.shape) / 512)
                weight[:, ::32] = 127 / 512
            else:
                weight.uniform_(0.5, 1.5)
        expected = model(IDS[:1])[0]
    runner, _ = load(Checkpoint.of(model, Tokenizer(tokenizer_definition())), quantize="int8", float_activations=True)
    assert isinstance(runner, CPURunner)
    logits = score(runner, IDS[0].tolist(), IDS.shape[1])
    assert (logits - expected).abs().max() < 0.002 * expected.std()
