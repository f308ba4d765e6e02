"""RocLM over quantized weights: the whole forward pass in one C call (roclm.c), for any tokens of any sequences.

    runner = CPURunner(open_checkpoint("smollm2-135m"))
    sequence = runner.new_sequence(capacity=256)
    logits = runner.forward([(sequence, prompt_ids, 1)])      # (1, V): the last position's
    logits = runner.forward([(sequence, [token_id], 1)])

It is tested against the readable model (roclab/lm/model.py). A row's result does not depend, not in a single bit, on
the other rows of a call: a batch, a prompt in pieces and draft tokens give exactly the tokens of one step after the
other.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import threading
import time
import weakref
from collections.abc import Mapping
from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roclab.core.devices import usable_cores
from roclab.core.exceptions import RocLabError
from roclab.lm.engine.cpu.build import Shape, load_library, why_no_library
from roclab.lm.engine.cpu.pack import GROUP, KINDS, TILE, Packing, blocks_of, is_packable, why_not
from roclab.lm.engine.runner import Runner
from roclab.lm.model import rope_frequencies
from roclab.lm.weights.checkpoint import Checkpoint
from roclab.lm.weights.tensors import StoredTensor

MAX_ROWS = 128  # tokens a call: enough to compute rather than to wait for weights, few enough for the caches
ARENA = 32 << 20  # bytes of memory asked for at a time, for weights
LAID_OUT_TOGETHER = 16 << 20  # weights
TRIED_BELOW = 512  # positions: longer texts get all threads (roclm_forward)
SPAN = 32  # positions are kept in runs of 32 (attention.h)
CHUNK = 512  # and in int8 in chunks of 512 (attention_int8.h)

_MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
             "mlp.up_proj", "mlp.down_proj")  # fmt: skip
_NORMS = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")


class CPUSequence:
    """The KV cache of one request: `ids` are the tokens it holds, `capacity` how many fit."""

    def __init__(self, runner: CPURunner, capacity: int):
        self.capacity = -(-capacity // SPAN) * SPAN
        self.ids: list[int] = []
        size = runner.library.roclm_cache_bytes(runner.handle, self.capacity)
        self._piece = runner.cache_piece
        # Zeros that the system hands out page by page when first touched: a large capacity costs nothing until it is
        # used. In huge pages, which numpy asks for, the first few tokens would touch nearly all of it.
        pages = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            with contextlib.suppress(OSError):  # a system without huge pages
                pages.madvise(mmap.MADV_NOHUGEPAGE)
        self._buffer = np.frombuffer(pages, np.uint8)
        self.address = self._buffer.ctypes.data
        self._touched = 0

    @property
    def shareable(self) -> int:
        return len(self.ids)

    @property
    def bytes(self) -> int:
        positions, size = self._piece
        return -(-max(self._touched, len(self.ids)) // positions) * size

    def cut(self, length: int) -> None:
        self._touched = max(self._touched, len(self.ids))
        del self.ids[length:]


class CPURunner(Runner):
    """A checkpoint's model on the kernels.

    `quantize`: "int8" or "int4" for float weights, None for weights that are quantized already.
    `float_activations`: activations stay float32 instead of being rounded to int8 in groups of 32; slower, and nearest
    to the dequantized model. `int8_cache`: keys and values are kept in int8 (never with `float_activations`), which
    halves the bytes attention reads. `threads`: None measures during decode how many are fastest; long contexts,
    prefill and batches get all cores, unless these slow each other down.

    Raises RocLabError if the kernels cannot take the checkpoint or cannot be compiled, or where memory does not
    suffice, CheckpointError as `Checkpoint.load_model` does.
    """

    name = "fast"
    dtype = None
    batch_invariant = True
    block = 1

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        quantize: str | None = None,
        float_activations: bool = False,
        int8_cache: bool = True,
        path: str | None = None,
        threads: int | None = None,
    ):
        library = load_library(path) if path else load_library()  # as others ask: the call is cached
        if library is None:
            raise RocLabError(f"no compiled kernels: {why_no_library()}")
        if reason := why_not(checkpoint, quantize):
            raise RocLabError(f"{checkpoint.path}: not for the fast kernels: {reason}")
        self.library, self.path = library, library.path
        self.config = config = checkpoint.config
        self.device = torch.device("cpu")
        self._cores = usable_cores()
        self.activations = "float32" if float_activations else "int8"
        self.weight_bytes = 0  # read for every token; known after `wait`
        self._lock = threading.RLock()  # one call at a time: the working space is one
        self._kept: list[Tensor] = []  # vectors the C side points at
        inv_freq, magnitude = rope_frequencies(config)
        shape = Shape(
            config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers,
            config.num_attention_heads, config.num_key_value_heads, config.head_dim, MAX_ROWS, int(float_activations),
            int(int8_cache and not float_activations), config.rms_norm_eps, magnitude,
        )  # fmt: skip
        tensors = checkpoint.tensors
        self.handle = library.roclm_new(ctypes.byref(shape))
        if not self.handle:
            raise RocLabError("not enough memory for the model's working space")
        self._memory: list[int] = []
        self._free = (0, 0)  # what is left of the last piece of it
        self._memory_lock = threading.Lock()
        weakref.finalize(self, _free_all, library, self.handle, self._memory)

        kinds = config.layer_types or ["sliding_attention"] * config.num_hidden_layers
        for layer in range(config.num_hidden_layers):
            if config.sliding_window and kinds[layer] == "sliding_attention":
                library.roclm_set_window(self.handle, layer, config.sliding_window)
            for which, name in enumerate(_NORMS):
                if (full := f"model.layers.{layer}.{name}.weight") in tensors:
                    self._set_vector(layer, which, tensors[full].load())
        self._set_vector(-1, 0, tensors["model.norm.weight"].load())
        self._set_vector(-1, 1, inv_freq)
        self._logits_width = library.roclm_stride(config.vocab_size)
        self._scratch = torch.empty(0, self._logits_width)
        # Positions and bytes of what caches are laid out and copied in: whole chunks of int8, spans of floats.
        piece, chunk = (library.roclm_cache_bytes(self.handle, n) for n in (SPAN, CHUNK))
        self.cache_piece = (CHUNK * piece // chunk, piece)
        self._trial = None if threads else Trial(self._cores)
        self._set_threads(threads or self._cores, threads or self._cores)
        matrices = [
            (layer, which, f"model.layers.{layer}.{name}")
            for layer in range(config.num_hidden_layers)
            for which, name in enumerate(_MATRICES)
        ]
        matrices.append((-1, 0, "model.embed_tokens"))
        if not config.tie_word_embeddings:
            matrices.append((-1, 1, "lm_head"))
        # The matrices are laid out while the caller does something else, such as building the tokenizer: those that are
        # taken as they lie in the file in one call, as each call would wait for the interpreter, which the caller holds
        # for tens of milliseconds at a time; the others in groups, so that only a few of our own blocks are in memory.
        self._packing: Packing | None = None
        if quantize is None and is_packable(checkpoint):
            self._packing = self._prepare(tensors, matrices, quantize)
            workers = max(1, self._cores - 1)  # and `wait`
            tasks = [partial(self._lay_out, self._packing)] * workers
        else:
            workers = min(self._cores, 4)
            groups = _groups(tensors, matrices)
            tasks = [partial(self._prepare_and_lay_out, tensors, group, quantize) for group in groups]
        pool = ThreadPoolExecutor(workers)
        self._loading: list[Future[None]] | None = [pool.submit(task) for task in tasks]
        pool.shutdown(wait=False)

    def wait(self) -> None:
        """Return once the weights are in place; `forward` waits by itself. Raises RocLabError where memory does not
        suffice."""
        with self._lock:
            if self._loading is not None:
                if self._packing is not None:
                    self._packing.run()  # the caller has nothing else to do any more
                try:
                    for task in self._loading:
                        task.result()
                except BaseException as error:
                    for task in self._loading:
                        task.cancel()
                    if isinstance(error, MemoryError):
                        raise RocLabError("not enough memory for the weights") from None
                    raise
                self._loading = self._packing = None

    def _set_threads(self, few: int, many: int) -> None:
        """`threads` for a row or a few, `most_threads` for more rows and long texts."""
        self.most_threads = int(self.library.roclm_threads(self.handle, few, many))
        self.threads = min(few, self.most_threads)

    def _set_vector(self, layer: int, which: int, vector: Tensor) -> None:
        vector = vector.contiguous()
        self._kept.append(vector)
        self.library.roclm_set_vector(self.handle, layer, which, vector.data_ptr())

    def _room(self, size: int) -> int:
        """Where so many bytes of weights may go. Matrices lie close together: each in a piece of memory of its own, on
        pages of 2 MB, a small model would take four times its size, and as long to load."""
        with self._memory_lock:
            at, end = self._free
            if end - at < size:
                at = self.library.roclm_alloc(arena := max(size, ARENA))
                if not at:
                    raise RocLabError("not enough memory for the weights")
                self._memory.append(at)
                end = at + arena
            self._free = (at + -(-size // 64) * 64, end)
            return at

    def _prepare(
        self, tensors: Mapping[str, StoredTensor], group: Items[tuple[int, int, str]], quantize: str | None
    ) -> Packing:
        """Room for these matrices, and the jobs that fill it."""
        packing, read = Packing(self.library), 0
        for layer, which, name in group:
            stored = tensors[f"{name}.weight"]
            rows, columns = stored.shape
            blocks = blocks_of(self.library, f"{name}.weight", stored, quantize)
            kind, padded = KINDS[blocks.kind], -(-rows // TILE) * TILE
            size = padded // TILE * (columns // GROUP) * self.library.roclm_tile_bytes(kind)
            tiles = self._room(size)
            packing.add(blocks, rows, columns, tiles)
            bias = None
            if (full := f"{name}.bias") in tensors:
                vector = torch.zeros(padded)
                vector[:rows] = tensors[full].load()
                self._kept.append(vector)
                bias = vector.data_ptr()
            arguments = (kind, rows, columns, tiles, bias)
            self.library.roclm_set_matrix(self.handle, layer, which, *arguments)
            if layer < 0 and self.config.tie_word_embeddings:
                self.library.roclm_set_matrix(self.handle, -1, 1, *arguments)
            if layer >= 0 or which == 1 or self.config.tie_word_embeddings:
                read += size
        with self._memory_lock:
            self.weight_bytes += read
        return packing

    def _lay_out(self, packing: Packing) -> None:
        """A method, so that a model which is dropped while it loads lives until its memory is no longer written to."""
        packing.run()

    def _prepare_and_lay_out(self, *arguments: Any) -> None:
        self._lay_out(self._prepare(*arguments))

    def new_sequence(self, capacity: int) -> CPUSequence:
        # Room for more than is asked: the next turn of a chat goes on in it. Untouched memory costs nothing.
        ample = min(max(2 * capacity, 1024), self.config.max_position_embeddings)
        return CPUSequence(self, max(capacity, ample))

    def copy(self, sequence: CPUSequence, length: int, capacity: int) -> CPUSequence:
        copied = self.new_sequence(max(capacity, length))
        sizes = (sequence.address, sequence.capacity, copied.address, copied.capacity, length)
        self.library.roclm_copy_cache(self.handle, *sizes)
        copied.ids = sequence.ids[:length]
        return copied

    def forward(self, work: Items[tuple[CPUSequence, Items[int], int]], *, scratch: bool = False) -> Tensor:
        """As `Runner.forward`, in float32. Fresh pages for the logits of every step would cost a fifth of its time, so
        `scratch` uses the same ones again."""
        self.wait()
        tokens: list[int] = []
        positions: list[int] = []
        addresses: list[int] = []
        capacities: list[int] = []
        outputs: list[int] = []
        for sequence, ids, wanted in work:
            past = len(sequence.ids)
            if past + len(ids) > sequence.capacity:
                raise RocLabError(f"{past + len(ids)} tokens do not fit: the cache holds {sequence.capacity}")
            tokens += ids
            positions += range(past, past + len(ids))
            addresses += [sequence.address] * len(ids)
            capacities += [sequence.capacity] * len(ids)
            outputs += range(len(tokens) - wanted, len(tokens))
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.config.vocab_size:
            raise RocLabError(f"token ids must lie between 0 and {self.config.vocab_size - 1}")
        if scratch and len(outputs) > len(self._scratch):
            self._scratch = torch.empty(len(outputs), self._logits_width)
        logits = self._scratch[: len(outputs)] if scratch else torch.empty(len(outputs), self._logits_width)
        token_array, position_array = np.array(tokens, np.int32), np.array(positions, np.int32)
        address_array, capacity_array = np.array(addresses, np.uint64), np.array(capacities, np.int64)
        done = 0
        for start in range(0, len(tokens), MAX_ROWS):
            end = min(start + MAX_ROWS, len(tokens))
            rows = np.array([o - start for o in outputs[done:] if o < end], np.int32)
            with self._lock:
                trial = self._trial if len(tokens) == 1 and positions[0] < TRIED_BELOW else None
                chosen = self.threads, self.most_threads
                if trial and (tried := trial.next()):
                    self._set_threads(tried, self._cores)
                started = time.perf_counter()
                failed = self.library.roclm_forward(
                    self.handle, end - start, token_array[start:].ctypes.data, position_array[start:].ctypes.data,
                    address_array[start:].ctypes.data, capacity_array[start:].ctypes.data, len(rows),
                    rows.ctypes.data, logits[done:].data_ptr(),
                )  # fmt: skip
                if trial and tried:
                    self._set_threads(*(trial.add(tried, time.perf_counter() - started) or chosen))
            if failed:
                raise RocLabError("not enough memory for the attention scores")
            done += len(rows)
        for sequence, ids, _ in work:
            sequence.ids += ids
        return logits[:, : self.config.vocab_size]

    def hidden(self, ids: Items[int]) -> Tensor:
        sequence, pieces = self.new_sequence(len(ids)), []
        for start in range(0, len(ids), MAX_ROWS):
            piece = ids[start : start + MAX_ROWS]
            rows = torch.empty(len(piece), self.config.hidden_size)
            with self._lock:  # the working space holds what the last call left there
                self.forward([(sequence, piece, 0)])
                self.library.roclm_hidden(self.handle, len(piece), rows.data_ptr())
            pieces.append(rows)
        return torch.cat(pieces)

    def machine(self, megabytes: int = 256, repeats: int = 5) -> dict[str, float]:
        """The most that this machine reads and computes, best of `repeats` with one thread and with all cores:
        bytes a second from memory (`bandwidth`), float32 operations a second (`flops`)."""
        memory = torch.ones(megabytes << 18)  # zeros would be one page that the system shows everywhere
        best = {"bandwidth": 0.0, "flops": 0.0}
        with self._lock:
            try:
                for threads in {1, self._cores}:
                    self.library.roclm_threads(self.handle, threads, threads)
                    for _ in range(repeats):
                        started = time.perf_counter()
                        self.library.roclm_read(self.handle, memory.data_ptr(), memory.numel())
                        read = time.perf_counter()
                        operations = self.library.roclm_multiply(self.handle, 1_000_000)
                        done = time.perf_counter()
                        best["bandwidth"] = max(best["bandwidth"], 4 * memory.numel() / (read - started))
                        best["flops"] = max(best["flops"], operations / (done - read))
            finally:
                self._set_threads(self.threads, self.most_threads)
        return best


def _groups(
    tensors: Mapping[str, StoredTensor], matrices: Items[tuple[int, int, str]]
) -> list[list[tuple[int, int, str]]]:
    """The matrices in groups of some million weights."""
    groups: list[list[tuple[int, int, str]]] = [[]]
    size = 0
    for matrix in matrices:
        groups[-1].append(matrix)
        size += math.prod(tensors[f"{matrix[2]}.weight"].shape)
        if size >= LAID_OUT_TOGETHER:
            groups, size = [*groups, []], 0
    return groups


class Trial:
    """How many threads write fastest, found while writing: a few steps of one token are made with each number, as the
    result is the same with all. Cores that are two halves of one, or busy with something else, show here and nowhere
    else; and because that changes, it is tried again from time to time."""

    ROUNDS = 4  # the first one is left out: threads begin, pages are touched
    AGAIN = 1000  # steps

    def __init__(self, cores: int):
        self._numbers = sorted({n for n in (1, 2, 4, 8, 16, 32) if n < cores} | {min(cores, 32)})
        self._rest = 0
        self._begin()

    def _begin(self) -> None:
        self.took: dict[int, list[float]] = {n: [] for n in self._numbers}

    def next(self) -> int | None:
        """The number to try with this step; None: not now."""
        if self._rest:
            self._rest -= 1
            return None
        return next(n for n, times in self.took.items() if len(times) < self.ROUNDS)

    def add(self, threads: int, seconds: float) -> tuple[int, int] | None:
        """A step took so long. Once all were tried: the smallest number within a fiftieth of the fastest, for writing;
        and the largest with which a step took less than twice as long, for what is more arithmetic: there handing over
        counts less."""
        self.took[threads].append(seconds)
        if min(map(len, self.took.values())) < self.ROUNDS:
            return None
        best = {n: min(times[1:]) for n, times in self.took.items()}
        self._rest = self.AGAIN
        self._begin()
        few = min(n for n in best if best[n] <= 1.02 * min(best.values()))
        return few, max(n for n in best if best[n] < 2 * best[few])


def _free_all(library: ctypes.CDLL, handle: int, memory: list[int]) -> None:
    library.roclm_free(handle)
    for address in memory:
        library.roclm_release(address)
