"""Model files as other programs wrote them: read rightly, or refused in one line with what to do."""

from __future__ import annotations

import json
import logging
import random
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from roclab.core.exceptions import CheckpointError, RocLabError
from roclab.lm.loading import load
from roclab.lm.model import RocLMConfig, RocLMForCausalLM
from roclab.lm.text.tokenizer import Tokenizer
from roclab.lm.weights.checkpoint import Checkpoint, open_checkpoint
from roclab.lm.weights.gguf_tokenizer import PRE_TOKENIZERS, tokenizer_from_gguf
from roclab.lm.weights.gguf_writer import write_gguf_floats

from .build import CHAT_TEMPLATE, byte_vocabulary, finish, peer, write_folder, write_gguf, write_tokenizer

IDS = torch.arange(5, 30)[None]


def logits(path: Path) -> torch.Tensor:
    with torch.inference_mode():
        return open_checkpoint(path).load_model()(IDS)


def copy_gguf(source: Path, target: Path, tensors=lambda name: True, metadata: bool = True, **changes) -> Path:
    """With some of the tensors, without the metadata but for `changes` if that is said; __ stands for a dot."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items() if metadata else ():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            of = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=of)
    if not metadata:
        writer.kv_data[0].clear()
    for key, value in changes.items():
        writer.kv_data[0].pop(key.replace("__", "."), None)
        writer.add_uint16(key.replace("__", "."), value)
    for tensor in reader.tensors:
        if tensors(tensor.name):
            writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.data), raw_dtype=tensor.tensor_type)
    finish(writer)
    return target


# ── GGUF ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("whole") / "whole.gguf", peer("llama"))


@pytest.fixture
def parts(whole, tmp_path) -> list[Path]:
    def of(name: str) -> int:
        return 1 if name.startswith("blk.0") else 2 if name.startswith("blk.1") else 0

    return [
        copy_gguf(
            whole, tmp_path / f"m-{number + 1:05}-of-00003.gguf", lambda name, n=number: of(name) == n,
            metadata=number == 0, split__no=number, split__count=3, split__tensors__count=21,
        )
        for number in range(3)
    ]  # fmt: skip


def test_a_split_file_loads_by_each_of_its_parts_and_by_the_folder(whole, parts):
    for name in [*parts, parts[0].parent]:
        assert torch.equal(logits(name), logits(whole))


def test_a_split_folder_with_a_projector_beside_it_is_one_model(whole, parts):
    shutil.copy(whole, parts[0].with_name("mmproj-model-f16.gguf"))
    assert torch.equal(logits(parts[0].parent), logits(whole))


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_part_is_named(parts, lost):
    parts[lost].unlink()
    with pytest.raises(CheckpointError, match=rf"part {lost + 1} of 3 is missing: {parts[lost].name}"):
        open_checkpoint(parts[lost].parent)


def test_parts_that_do_not_belong_together_or_are_renamed_are_refused(parts):
    shutil.copy(parts[1], parts[2])
    with pytest.raises(CheckpointError, match=r"00003-of-00003\.gguf: is part 1 \(from 0\) of 3"):
        open_checkpoint(parts[0])
    with pytest.raises(CheckpointError, match="found by their names"):
        open_checkpoint(parts[0].rename(parts[0].with_name("renamed.gguf")))


@pytest.mark.parametrize("count", ["three", [3], 3.5])
def test_a_damaged_count_of_parts_is_one_line(count, tmp_path):
    path = tmp_path / "m-00001-of-00003.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    {str: writer.add_string, list: writer.add_array, float: writer.add_float32}[type(count)]("split.count", count)
    finish(writer)
    with pytest.raises(CheckpointError, match=r"m-00001-of-00003\.gguf: "):
        open_checkpoint(path)


def test_one_part_of_one_is_a_whole_file(whole, tmp_path):
    one = copy_gguf(whole, tmp_path / "m-00001-of-00001.gguf", split__no=0, split__count=1, split__tensors__count=21)
    assert torch.equal(logits(one), logits(whole))


@pytest.mark.parametrize("version", [2, 3])
def test_a_big_endian_file_is_called_that(version, tmp_path):
    (tmp_path / "be.gguf").write_bytes(b"GGUF" + struct.pack(">IQQ", version, 0, 0))
    with pytest.raises(CheckpointError, match=r"big-endian.*gguf-convert-endian"):
        open_checkpoint(tmp_path / "be.gguf")


def test_a_mixture_of_experts_is_called_that(whole, tmp_path):
    """Mixtral's GGUF files name the architecture "llama"."""
    for kind, key in (("qwen3_moe", "num_experts"), ("mixtral", "num_local_experts")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, key: 8}))
        with pytest.raises(CheckpointError, match=r"config\.json: a mixture of experts, which is not supported; take"):
            open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"m\.gguf: a mixture of experts"):
        open_checkpoint(copy_gguf(whole, tmp_path / "m.gguf", llama__expert_count=8))


@pytest.mark.parametrize("pre", [None, "default", "deepseek-llm"])
def test_without_a_known_pre_tokenizer_the_original_tokenizer_helps(pre, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", peer("llama"), changes={"tokenizer.ggml.pre": pre})
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.pre.*--tokenizer FOLDER"):
        load(path)
    write_tokenizer(tmp_path / "original")
    _, tokenizer = load(path, tokenizer=tmp_path / "original")
    assert tokenizer.decode(tokenizer.encode("the sea")) == "the sea"


def metadata(**changes) -> dict:
    tokens, merges = byte_vocabulary()
    values = {
        "model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": [" ".join(m) for m in merges],
        "token_type": [3] * 5 + [1] * (len(tokens) - 5), "bos_token_id": 0, "eos_token_id": 2, "add_bos_token": False,
    }  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items()} | {
        "tokenizer.chat_template": changes.get("template", CHAT_TEMPLATE)
    }


CHAT = [{"role": "user", "content": "the sea <|im_end|>"}]


def test_control_tokens_that_are_typed_normal_are_control_tokens():
    right = tokenizer_from_gguf(metadata(), "right")
    wrong = tokenizer_from_gguf(metadata(token_type=[3, 1, 1] + [1] * 261), "wrong")
    assert wrong.encode_chat(CHAT) == right.encode_chat(CHAT)
    assert wrong.encode("<|im_start|>") == right.encode("<|im_start|>")  # text stays text


def test_a_word_that_looks_like_a_mark_but_is_made_by_merges_stays_a_word():
    tokens, merges = byte_vocabulary()
    spelled = [("<", "-"), ("<-", ">")]
    t = tokenizer_from_gguf(
        metadata(
            tokens=[*tokens, "<-", "<->"], token_type=[3] * 5 + [1] * (len(tokens) - 3),
            merges=[" ".join(m) for m in (*merges, *spelled)], template="<->" + CHAT_TEMPLATE,
        ),
        "words",
    )  # fmt: skip
    assert "<->" not in t.control
    assert t.encode("<->", bos=False) == [len(tokens) + 1]


@pytest.mark.parametrize("end", ["<|eot_id|>", "<end_of_turn>", "<|im_end|>"])
def test_what_ends_a_turn_ends_generation_though_the_file_names_another_token(end):
    tokens, _ = byte_vocabulary()
    template = "{% for m in messages %}{{ m['content'] + '" + end + "' }}{% endfor %}"
    t = tokenizer_from_gguf(metadata(tokens=[*tokens[:2], end, *tokens[3:]], eos_token_id=0, template=template), "t")
    assert t.eos_token_ids == [0, 2]
    assert t.eos_token == "<|endoftext|>"


def test_an_end_of_turn_that_the_template_does_not_write_ends_nothing():
    t = tokenizer_from_gguf(metadata(eos_token_id=0, template="{{ messages[0]['content'] }}"), "t")
    assert t.eos_token_ids == [0]


@pytest.mark.parametrize("lost", [2**32 - 1, 5000, 264])
def test_special_ids_beyond_the_vocabulary_are_said(lost, tmp_path, caplog):
    tokenizer_from_gguf(metadata(bos_token_id=lost, add_bos_token=True), "file")
    assert f"the BOS token is id {lost}" in caplog.text
    path = write_gguf(tmp_path / "m.gguf", peer("llama"), changes={"tokenizer.ggml.eos_token_id": max(lost, 300)})
    with caplog.at_level(logging.WARNING):
        open_checkpoint(path).load_tokenizer()
    assert f"the end token is id {max(lost, 300)}" in caplog.text


def test_two_ids_with_one_text_both_decode():
    tokens, _ = byte_vocabulary()
    t = tokenizer_from_gguf(metadata(tokens=[*tokens, "Ġthe"], token_type=[3] * 5 + [1] * (len(tokens) - 4)), "twins")
    first, second = tokens.index("Ġthe"), len(tokens)
    assert (t.decode([first]), t.decode([second])) == (" the", " the")
    assert t.encode(" the") == [second]  # as llama.cpp: the last
    assert t.vocab_size == len(tokens) + 1


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope_type": "default"}, None),
        ({}, None),
        ({"rope_type": "default", "type": "linear", "factor": 2.0}, "'linear'"),  # they contradict each other
        ({"factor": 4.0}, "up to 128 tokens"),  # of which kind?
        ({"type": "linear"}, "factor"),
        ({"type": "linear", "factor": "4"}, "factor"),
        ({"type": "dynamic", "factor": 2.0}, "'dynamic'"),
        ({"type": "yarn", "factor": 4.0}, "original_max_position_embeddings"),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16}, "up to 64 tokens"),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7}, "mscale"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor"),
    ],
    ids=str,
)
def test_rope_scaling_is_taken_as_it_is_or_refused(rope, expected, tmp_path):
    write_folder(tmp_path, peer("llama"))
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("rope_parameters")
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": rope, "rope_theta": 1e4}))
    if isinstance(expected, str):
        with pytest.raises(CheckpointError, match=r"config\.json: .*rope_scaling") as caught:
            open_checkpoint(tmp_path)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        assert open_checkpoint(tmp_path).config.rope_scaling == expected


# ── Hugging Face folders ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sharded(tmp_path) -> Path:
    return write_folder(tmp_path, peer("llama"), max_shard_size="60KB")


def test_the_index_decides_which_file_a_tensor_comes_from(sharded):
    before = logits(sharded)
    shards = sorted(sharded.glob("*.safetensors"))
    stale = load_file(shards[0])
    save_file(load_file(shards[-1]) | {name: torch.zeros_like(t) for name, t in stale.items()}, shards[-1])
    assert torch.equal(logits(sharded), before)


def test_a_stale_index_beside_a_whole_file_is_passed_over(tmp_path, caplog):
    write_folder(tmp_path, peer("llama"))
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert logits(tmp_path).isfinite().all()
    assert "model.safetensors is taken instead" in caplog.text


def test_a_shard_without_its_tensor_and_one_that_was_not_fetched_are_named(sharded):
    last = sorted(sharded.glob("*.safetensors"))[-1]
    save_file(dict(list(load_file(last).items())[1:]), last)
    with pytest.raises(CheckpointError, match=rf"{last.name}: tensor \S+ is missing"):
        open_checkpoint(sharded)
    (sharded / f"{last.name}.incomplete").write_bytes(last.read_bytes()[:100])
    last.unlink()
    with pytest.raises(CheckpointError, match=rf"{last.name}: missing, .*interrupted \({last.name}\.incomplete\)"):
        open_checkpoint(sharded)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "m.gguf"])
def test_a_git_lfs_pointer_is_called_that(name, tmp_path):
    """A repository that was cloned without Git LFS."""
    write_folder(tmp_path, peer("llama"))
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name}.* a Git LFS pointer, not the file itself: run `git lfs pull`"):
        open_checkpoint(tmp_path / name if name == "m.gguf" else tmp_path).load_tokenizer()


def test_a_link_to_weights_that_are_gone_is_called_that(tmp_path):
    """A snapshot of the Hub's cache whose blobs were cleared."""
    write_folder(tmp_path, peer("llama"))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to("../blobs/abc")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*leads nowhere"):
        open_checkpoint(tmp_path)


def test_a_folder_whose_only_file_was_not_finished_says_so(tmp_path):
    write_folder(tmp_path, peer("llama"))
    (tmp_path / "model.safetensors").rename(tmp_path / "model.safetensors.part")
    with pytest.raises(CheckpointError, match=r"interrupted \(model\.safetensors\.part\)"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("same", [True, False])
def test_a_stored_head_wins_over_the_flag_that_ties_it(same, tmp_path, caplog):
    model = peer("llama")
    if same:
        model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
    write_folder(tmp_path, model)
    before = logits(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(logits(tmp_path), before)
    assert open_checkpoint(tmp_path).config.tie_word_embeddings == same
    assert ("lm_head.weight" in caplog.text) != same


def test_json_that_an_editor_gave_a_bom_is_read(tmp_path):
    write_folder(tmp_path, peer("llama"))
    before = logits(tmp_path)
    for path in (*tmp_path.glob("*.json"), *tmp_path.glob("*.jinja")):
        path.write_text(path.read_text(encoding="utf-8").replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    assert torch.equal(logits(tmp_path), before)
    assert open_checkpoint(tmp_path).load_tokenizer().encode("the sea")


@pytest.mark.parametrize(
    ("file", "content"),
    [("generation_config.json", {"eos_token_id": "2"}), ("generation_config.json", {"eos_token_id": [2, 1.5]}),
     ("tokenizer_config.json", {"bos_token": True}), ("tokenizer_config.json", {"chat_template": [None]}),
     ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}), ("tokenizer_config.json", {"eos_token": 7}),
     ("generation_config.json", {"eos_token_id": {}})],
)  # fmt: skip
def test_damaged_side_files_give_one_line(file, content, tmp_path):
    write_folder(tmp_path, peer("llama"))
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path).load_tokenizer()
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


# ── Vocabularies ────────────────────────────────────────────────────────────────────────────────────────────────

ALPHABETS = [
    range(32, 127), range(32), range(0x80, 0x250), range(0x370, 0x530), range(0x590, 0x700), range(0x900, 0xE00),
    range(0x3040, 0x3100), range(0x4E00, 0x9FFF), range(0xAC00, 0xD7A4), range(0x1F300, 0x1FAFF), range(0x2000, 0x2070),
]  # fmt: skip


def texts(count: int) -> list[str]:
    """Words, every script, whitespace, control characters, what looks like pieces."""
    rng = random.Random(0)
    words = Path(__file__).read_text(encoding="utf-8").split()
    found = [
        "",
        " ",
        "   ",
        "\n",
        " a ",
        "\t\t",
        "▁",
        "a▁b",
        "e\u0301",
        "\x00",
        "<s> </s> <unk> <0x0A>",
        "\ufffd",
        "x" * 999,
    ]
    while len(found) < count:
        alphabet = [chr(c) for c in rng.choice(ALPHABETS)]
        found.append(" ".join(rng.choices(words, k=rng.randint(1, 9))))
        found.append("".join(rng.choices([" ", "\n", "a", *rng.choices(alphabet, k=20)], k=rng.randint(1, 40))))
    return found


@pytest.fixture(scope="module", params=["as Llama 2", "spaces stripped", "no space before", "without bytes"])
def sentencepiece_model(request, tmp_path_factory):
    """(the reference, its file): trained on this repository's words."""
    spm = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm")
    corpus = [*Path(__file__).read_text(encoding="utf-8").splitlines(), *texts(200)]
    (folder / "corpus.txt").write_text("\n".join(line for line in corpus if line.strip()), encoding="utf-8")
    llama = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
    options = {
        "as Llama 2": {}, "spaces stripped": {"remove_extra_whitespaces": True},
        "no space before": {"add_dummy_prefix": False}, "without bytes": {"byte_fallback": False},
    }  # fmt: skip
    spm.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=900,
        character_coverage=0.98, minloglevel=2, **llama | options[request.param],
    )  # fmt: skip
    return spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")), folder


def test_a_sentencepiece_vocabulary_gives_the_references_tokens(sentencepiece_model):
    reference, folder = sentencepiece_model
    t = Tokenizer.from_directory(folder)
    for text in texts(2000):
        assert t.encode(text, bos=False) == reference.encode(text), text
    assert t.encode("a")[0] == t.bos_token_id == reference.bos_id()
    assert t.eos_token_ids == [reference.eos_id()]
    for text in ("the sea", "e\u0301 日本")[: 2 if "<0x0A>" in t.definition["model"]["vocab"] else 1]:
        assert t.decode(t.encode(text)) == reference.decode(reference.encode(text))


def test_the_same_vocabulary_in_a_gguf_file(sentencepiece_model):
    reference, folder = sentencepiece_model
    ids = range(reference.vocab_size())
    kinds = [
        2 if reference.is_unknown(i) else 3 if reference.is_control(i) else 6 if reference.is_byte(i) else 1
        for i in ids
    ]
    values = {
        "model": "llama", "tokens": [reference.id_to_piece(i) for i in ids], "token_type": kinds,
        "scores": [reference.get_score(i) for i in ids], "bos_token_id": 1, "eos_token_id": 2,
        "add_space_prefix": reference.encode("a", out_type=str)[0][0] == "▁",
        "remove_extra_whitespaces": reference.encode("a  b") == reference.encode("a b"),
    }  # fmt: skip
    t = tokenizer_from_gguf({f"tokenizer.ggml.{key}": value for key, value in values.items()}, "file")
    other = Tokenizer.from_directory(folder)
    for text in texts(500):
        assert t.encode(text) == other.encode(text)


@pytest.mark.parametrize("layout", ["its own file", "tokenizer.json"])
def test_a_sentencepiece_vocabulary_is_exported(sentencepiece_model, layout: str, tmp_path):
    _, folder = sentencepiece_model
    source = Tokenizer.from_directory(folder)
    if layout == "tokenizer.json":  # as transformers converts it: the space is put first before others are replaced
        definition = source.public_definition()
        definition["normalizer"]["normalizers"].reverse()
        source = Tokenizer(definition, bos_token="<s>", eos_tokens=["</s>"], adds_bos=True)
    config = RocLMConfig(
        vocab_size=source.vocab_size + 5, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    )  # fmt: skip
    written = Checkpoint.of(RocLMForCausalLM(config), source)
    if layout == "tokenizer.json" and len(definition["normalizer"]["normalizers"]) > 2:
        with pytest.raises(RocLabError, match="writes a folder instead"):  # this order is no SentencePiece's
            write_gguf_floats(tmp_path / "m.gguf", config, source, written.tensors)
        return
    write_gguf_floats(tmp_path / "m.gguf", config, source, written.tensors)
    again = open_checkpoint(tmp_path / "m.gguf").load_tokenizer()
    for text in texts(1000):
        assert again.encode(text) == source.encode(text), text
    assert (again.bos_token_id, again.eos_token_ids, again.control) == (1, [2], source.control)


def test_other_kinds_and_a_damaged_one_are_refused(tmp_path):
    spm = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus.txt").write_text("\n".join(texts(200)), encoding="utf-8")
    for kind, what in (("unigram", "supported: BPE"), ("bpe", "'nmt_nfkc' is not supported")):
        spm.SentencePieceTrainer.train(
            input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "tokenizer"), model_type=kind,
            vocab_size=800, minloglevel=2, character_coverage=0.98,
        )  # fmt: skip
        with pytest.raises(CheckpointError, match=rf"tokenizer\.model: .*{what}"):
            Tokenizer.from_directory(tmp_path)
    good = (tmp_path / "tokenizer.model").read_bytes()
    for damaged in (b"", good[:1000], good[:200] + b"\xff" * 50 + good[250:], b"<!DOCTYPE html>"):
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"tokenizer\.model: "):
            Tokenizer.from_directory(tmp_path)


def test_tekken_splits_texts_as_its_pattern_says():
    """The pattern as Mistral's own tekken.json has it, by the `regex` package."""
    regex = pytest.importorskip("regex")
    pattern = regex.compile(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = PRE_TOKENIZERS["tekken"]["pre_tokenizer"]["pretokenizers"][0]
    ours = Split(Regex(split["pattern"]["Regex"]), "isolated")
    for text in ["HelloWorld ABCdef 2024 http://a/b\n\n x", "ÉCOLE Élan 日本語Test", *texts(600)]:
        assert [piece for piece, _ in ours.pre_tokenize_str(text)] == pattern.findall(text), text
