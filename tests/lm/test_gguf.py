"""GGUF files: every block type against the `gguf` package, files it writes, files that are damaged."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roclab.core.exceptions import CheckpointError
from roclab.lm.weights.gguf_blocks import BLOCK_TYPES
from roclab.lm.weights.gguf_file import GGUFFile

from .build import finish

gguf = pytest.importorskip("gguf")

# Where each type keeps its half-precision scales, as byte offsets into a block.
SCALES = {
    "F32": [], "F16": [0], "BF16": [], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "Q2_K": [80, 82], "Q3_K": [108],
    "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}  # fmt: skip
NAMES = [block_type.name for block_type in BLOCK_TYPES.values()]
BY_NAME = {block_type.name: (type_id, block_type) for type_id, block_type in BLOCK_TYPES.items()}


def random_blocks(name: str, count: int, seed: int) -> np.ndarray:
    """(count, nbytes): random bytes; scales are random finite halves, subnormal and negative ones among them."""
    _, block_type = BY_NAME[name]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, block_type.nbytes), dtype=np.uint8)
    for at in SCALES[name]:
        bits = rng.integers(0, 0x7C00, count, dtype=np.uint16) | (rng.integers(0, 2, count, dtype=np.uint16) << 15)
        blocks[:, at : at + 2] = bits.astype("<u2").view(np.uint8).reshape(count, 2)
    if name == "BF16":
        blocks[:, 1] &= 0xBF  # an exponent that is not all ones
    if name == "F32":
        blocks[:, 3] &= 0xBF
    return blocks


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def write(path: Path, tensors: dict[str, tuple[np.ndarray, str]], **metadata: object) -> Path:
    """`tensors`: name → (bytes of rows, block type)."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_array(key, value)
    for name, (rows, kind) in tensors.items():
        if kind == "F32":
            writer.add_tensor(name, rows)
        else:
            writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType[kind])
    finish(writer)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_block_types_are_known_by_the_numbers_and_sizes_of_the_format(name):
    type_id, block_type = BY_NAME[name]
    kind = gguf.GGMLQuantizationType(type_id)
    assert kind.name == name
    assert gguf.GGML_QUANT_SIZES[kind] == (block_type.size, block_type.nbytes)


@pytest.mark.parametrize("name", NAMES)
def test_random_blocks_dequantize_to_the_same_bits_as_the_gguf_package(name):
    type_id, block_type = BY_NAME[name]
    blocks = random_blocks(name, 6000, seed=type_id)
    kind = gguf.GGMLQuantizationType(type_id)
    raw = blocks.view(np.float32) if name == "F32" else blocks.view(np.float16) if name == "F16" else blocks
    expected = gguf.quants.dequantize(raw, kind).astype(np.float32)
    assert same_bits(np.ascontiguousarray(block_type.dequantize(blocks)), expected.reshape(len(blocks), -1))


@pytest.mark.parametrize("name", NAMES)
def test_quantized_weights_read_back_as_the_gguf_package_reads_them(name, tmp_path):
    type_id, block_type = BY_NAME[name]
    kind = gguf.GGMLQuantizationType(type_id)
    weights = np.random.default_rng(3).normal(0, 0.05, (24, 512)).astype(np.float32)
    try:
        rows = gguf.quants.quantize(weights, kind)
    except NotImplementedError:  # the package only reads the k-quants
        rows = random_blocks(name, weights.size // block_type.size, seed=5).reshape(24, -1)
    path = write(tmp_path / "a.gguf", {"w": (rows, name)})
    expected = gguf.quants.dequantize(rows, kind).astype(np.float32)
    loaded = GGUFFile(path).tensors["w"].load()
    assert loaded.dtype == torch.float32
    assert same_bits(loaded.numpy(), expected)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(GGUFFile(path).tensors["w"].load(dtype), torch.from_numpy(expected).to(dtype))


def test_a_tensor_longer_than_one_working_piece_is_whole(tmp_path):
    weights = np.random.default_rng(4).normal(size=(700, 2048)).astype(np.float32)  # above 2²⁰ numbers
    rows = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    path = write(tmp_path / "a.gguf", {"plain": (weights, "F32"), "packed": (rows, "Q8_0")})
    file = GGUFFile(path)
    assert same_bits(file.tensors["plain"].load().numpy(), weights)
    assert same_bits(
        file.tensors["packed"].load().numpy(), gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.Q8_0)
    )


def test_every_kind_of_metadata_reads_back_as_written(tmp_path):
    scalars = {
        "uint8": 255, "int8": -128, "uint16": 65535, "int16": -32768, "uint32": 2**32 - 1, "int32": -(2**31),
        "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.15625, "float64": 0.1, "bool": True,
        "string": "naïve 🦜 <|im_start|>\n",
    }  # fmt: skip
    arrays = {
        "ints": [1, -2, 3], "floats": [0.5, -0.25], "strings": ["", "a", "Ġé"], "bools": [True, False],
        "nested": [[1, 2], [3]],
    }  # fmt: skip
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for kind, value in scalars.items():
        getattr(writer, f"add_{kind}")(f"scalar.{kind}", value)
    for key, value in arrays.items():
        writer.add_array(f"array.{key}", value)
    rng = np.random.default_rng(1)
    tensors = {
        "vector": rng.normal(size=7).astype(np.float32),
        "matrix": rng.normal(size=(3, 5)).astype(np.float16),
        "cube": rng.normal(size=(2, 3, 4)).astype(np.float32),
    }
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    finish(writer)

    file = GGUFFile(tmp_path / "a.gguf")
    assert {k.removeprefix("scalar."): v for k, v in file.metadata.items() if k.startswith("scalar.")} == scalars
    assert {k.removeprefix("array."): v for k, v in file.metadata.items() if k.startswith("array.")} == arrays
    assert {name: t.shape for name, t in file.tensors.items()} == {name: v.shape for name, v in tensors.items()}
    for name, value in tensors.items():
        assert np.array_equal(file.tensors[name].load().numpy(), value.astype(np.float32))


@pytest.mark.parametrize("alignment", [8, 32, 64, 256])
def test_tensors_are_found_under_any_alignment(alignment, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_custom_alignment(alignment)
    values = [np.arange(n, dtype=np.float32) for n in (1, 3, 50)]
    for i, value in enumerate(values):
        writer.add_tensor(f"t{i}", value)
    finish(writer)
    file = GGUFFile(tmp_path / "a.gguf")
    for i, value in enumerate(values):
        assert np.array_equal(file.tensors[f"t{i}"].load().numpy(), value)


def test_opening_reads_no_weights(tmp_path):
    weights = np.ones((256, 65536), np.float32)  # 64 MiB
    path = write(tmp_path / "a.gguf", {"w": (weights, "F32")})
    tracemalloc.start()
    file = GGUFFile(path)
    raw = file.tensors["w"].raw
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert raw.nbytes == weights.nbytes
    assert not raw.flags.owndata  # a view of the mapped file
    assert not raw.flags.writeable
    assert peak < 1 << 20


# ── Damaged files ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> bytes:
    rng = np.random.default_rng(2)
    rows = random_blocks("Q4_K", 2, seed=1).reshape(1, -1)
    path = write(
        tmp_path_factory.mktemp("gguf") / "a.gguf",
        {"f": (rng.normal(size=(4, 8)).astype(np.float32), "F32"), "q": (rows, "Q4_K")},
        name="small",
        words=["one", "two", "three"],
        numbers=[1, 2, 3],
    )
    return path.read_bytes()


def open_whole(path: Path, data: bytes) -> str:
    """Open and load everything: "read", or the message of the one error that may come; memory stays modest."""
    path.write_bytes(data)
    message = "read"
    tracemalloc.start()
    try:
        file = GGUFFile(path)
        for name in file.tensors:
            with np.errstate(all="ignore"):  # damaged scales may be infinite
                file.tensors[name].load()
    except CheckpointError as error:
        message = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 100 * len(data) + (1 << 20)
    assert message == "read" or str(path) in message
    assert "\n" not in message
    return message


def test_a_file_cut_anywhere_is_reported_as_cut(small_file, tmp_path):
    path = tmp_path / "cut.gguf"
    assert open_whole(path, small_file) == "read"
    padding = 32  # the writer fills up the last tensor; nothing is lost with those bytes
    for length in range(0, len(small_file) - padding, 1 if len(small_file) < 4000 else 7):
        assert open_whole(path, small_file[:length]) != "read", length


def test_a_cut_in_the_tensors_names_the_tensor_and_the_place(small_file, tmp_path):
    message = open_whole(tmp_path / "cut.gguf", small_file[:-200])
    assert "tensor q ends at byte" in message
    assert "fetch the file again" in message


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_give_a_clear_error_or_a_readable_file(small_file, tmp_path, data):
    damaged = bytearray(small_file)
    header = small_file.index(b"q\x02\x00\x00\x00") + 40  # most of it interesting: the tensors' data cannot be wrong
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, header))
        change = data.draw(st.sampled_from([1, 2, 4, 8]))
        number = data.draw(st.one_of(st.integers(0, 256), st.integers(0, 2 ** (8 * change) - 1)))
        damaged[at : at + change] = (number % 2 ** (8 * change)).to_bytes(change, "little")
    open_whole(tmp_path / "damaged.gguf", bytes(damaged))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rest=st.binary(max_size=300), version=st.sampled_from([2, 3]), counts=st.tuples(*[st.integers(0, 3)] * 2))
def test_random_bytes_behind_the_magic_never_raise_anything_else(tmp_path, rest, version, counts):
    open_whole(tmp_path / "random.gguf", b"GGUF" + struct.pack("<IQQ", version, *counts) + rest)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


HUGE = 2**62
HOSTILE = {
    "empty file": b"",
    "another format": b"PK\x03\x04" + bytes(100),
    "an unknown version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
    "a huge number of tensors": b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0),
    "a huge number of entries": b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE),
    "a huge string": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", HUGE) + b"x" * 50,
    "a huge array": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("a") + struct.pack("<IIQ", 9, 4, HUGE),
    "a huge array of strings": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("a") + struct.pack("<IIQ", 9, 8, HUGE),
    "endless arrays in arrays": b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + string("a")
    + struct.pack("<I", 9)
    + struct.pack("<IQ", 9, 1) * 5000,
    "an unknown kind of value": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("a") + struct.pack("<IQ", 77, 0),
    "an array of an unknown kind": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("a") + struct.pack("<IIQ", 9, 77, 1),
    "an alignment that is text": b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + string("general.alignment")
    + struct.pack("<I", 8)
    + string("wide"),
    "a negative alignment": b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + string("general.alignment")
    + struct.pack("<Ii", 5, -32),
    "a key that is no text": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2) + b"\xff\xfe" + bytes(20),
}
for label, dims in {
    "no size": (),
    "an empty size": (2**40, 0),
    "a huge size": (2**40, 2**40),
    "odd rows": (31,),
}.items():
    for kind in (0, 2):
        if (label, kind) != ("odd rows", 0):
            HOSTILE[f"a tensor of type {kind} with {label}"] = (
                b"GGUF"
                + struct.pack("<IQQ", 3, 1, 0)
                + string("t")
                + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, 0)
                + bytes(64)
            )


@pytest.mark.parametrize(
    ("names", "offsets", "said"),
    [
        ("ab", (0, 32), ", within tensor a (file of"),
        ("ba", (64, 0), "read"),
        ("ab", (0, 60), "within tensor a"),
        ("ab", (0, 68), "not a multiple of 32"),
        ("aa", (0, 64), "tensor a stands in it twice"),
    ],
)
def test_tensors_that_lie_over_one_another(names: str, offsets: tuple[int, int], said: str, tmp_path):
    header = b"GGUF" + struct.pack("<IQQ", 3, 2, 0)
    for name, offset in zip(names, offsets, strict=True):
        header += string(name) + struct.pack("<IQIQ", 1, 16, 0, offset)  # 16 numbers of four bytes
    data = header + bytes(-len(header) % 32) + bytes(160)
    assert said in open_whole(tmp_path / "over.gguf", data)


@pytest.mark.parametrize("label", HOSTILE)
def test_hostile_files_are_refused(label, tmp_path):
    assert open_whole(tmp_path / "hostile.gguf", HOSTILE[label]) != "read"


def test_a_block_type_we_do_not_read_is_named_with_those_we_do(tmp_path):
    data = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + string("blk.0.w") + struct.pack("<IQIQ", 1, 256, 16, 0) + bytes(512)
    message = open_whole(tmp_path / "iq2.gguf", data)
    assert "blk.0.w" in message
    assert "type 16" in message
    assert all(name in message for name in NAMES)


def test_a_missing_file_and_a_folder_are_reported(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            GGUFFile(path)
