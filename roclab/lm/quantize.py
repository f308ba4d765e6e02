"""Float weights to a GGUF file in int8 or int4; int4 so that what a layer computes stays near, not each weight (GPTQ).

    quantize(checkpoint, tokenizer, Path("out.gguf"), "int4", lambda: written_texts(checkpoint, tokenizer, 16_384))

    x (N, T, D): the residual stream over N calibration texts
    for every layer, for every matrix in the order of use:
        H = Σ xᵀx over the inputs the matrix gets, its layer's earlier matrices being rounded already
        round column by column; what a column's rounding changes, the columns to its right make up for
        then steps, minima and single numbers once more, each to where the loss is least
    x = the rounded layer's output

The output of W on these inputs changes by tr(ΔW·H·ΔWᵀ): rounding to the nearest step makes ΔW small, this makes that
small, at the same bytes. Source: Frantar et al. 2022, GPTQ, with the scales of Q4_1 (a step and a minimum per 32
weights) chosen when their group's turn comes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from roclab.core.exceptions import DataError, RocLabError
from roclab.core.files import atomic_file
from roclab.core.progress import track
from roclab.lm.engine.cpu.build import load_library, why_no_library
from roclab.lm.engine.cpu.pack import GROUP, blocks_of, is_quantized, stays_int8, why_not
from roclab.lm.engine.cpu.runner import CPURunner
from roclab.lm.engine.runner import Runner
from roclab.lm.engine.torch_runner import TorchRunner
from roclab.lm.generate import complete
from roclab.lm.model import RocLMForCausalLM
from roclab.lm.settings import SamplingParams
from roclab.lm.text.tokenizer import Tokenizer
from roclab.lm.weights.checkpoint import Checkpoint
from roclab.lm.weights.gguf_writer import check, write_gguf

WINDOW = 512  # tokens of a calibration text
TEXTS_AT_ONCE = 16
LEVELS = 15  # steps between a group's smallest and largest number
DAMPING = 0.01  # of H's mean diagonal: directions that the calibration texts hardly show
ROUNDS = 2  # of refitting steps and minima, and of trying each quant again
EQUATIONS = 1 << 24  # numbers of the linear systems that are solved at once: some hundred megabytes
SHRINKING = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6)  # of a group's range: outliers may be cut off

# Matrices of a layer that share an input, in the order of use.
_STATIONS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def quantize(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    path: Path,
    to: str,
    texts: Callable[[], Tensor] | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Write `checkpoint` to `path` in "int8" (Q8_0) or "int4" (Q4_1; in Q8_0 what `stays_int8`), whole or not at all.
    `texts` gives ids (N, T) to calibrate int4 on, and is called once all that can be known before is known to be in
    order; None rounds to the nearest.

    Raises RocLabError where the kernels could not run the result or cannot be compiled, for numbers that are not
    finite, for what GGUF cannot hold (`gguf_write.check`) and if `path` cannot be written.
    """
    if reason := why_not(checkpoint, to):
        raise RocLabError(f"{checkpoint.path}: cannot be quantized for the kernels: {reason}")
    library = load_library()
    if library is None:
        raise RocLabError(f"quantizing needs the kernels: {why_no_library()}")
    check(checkpoint.config, tokenizer)
    stored = checkpoint.tensors
    try:
        with atomic_file(path) as temporary:
            rounded: dict[str, np.ndarray] = {}
            if to == "int4" and texts is not None:
                ids = texts()
                model = checkpoint.load_model(torch.float32, device)
                for name, matrix in round_layers(model, ids.to(device)):
                    rounded[name] = matrix.blocks()
                del model

            def tensors() -> Iterator[tuple[str, str, np.ndarray]]:
                for name, tensor in stored.items():
                    if len(tensor.shape) == 1:
                        yield name, "F32", tensor.load().numpy()
                    elif name in rounded:
                        yield name, "Q4_1", rounded.pop(name).reshape(tensor.shape[0], -1)
                    else:
                        blocks = blocks_of(library, name, tensor, to)
                        yield name, blocks.kind, blocks.data.reshape(tensor.shape[0], -1)

            write_gguf(temporary, checkpoint.config, tokenizer, tensors())
    except OSError as error:
        raise RocLabError(f"{path}: cannot be written: {error.strerror or error}") from None


def calibration_texts(
    checkpoint: Checkpoint, tokenizer: Tokenizer, text: str, tokens: int, origin: str = "the calibration text"
) -> Tensor:
    """The beginning of a text as ids (N, window), at most `tokens` of them. Raises DataError, which names `origin`, for
    a text that is too short."""
    ids, window = tokenizer.encode(text), _window(checkpoint)
    rows = min(tokens, len(ids)) // window
    if not rows:
        raise DataError(f"{origin} has {len(ids)} tokens: {window} are needed, better ten thousand")
    return torch.tensor(ids[: rows * window]).view(rows, window)


def _window(checkpoint: Checkpoint) -> int:
    return min(WINDOW, checkpoint.config.max_position_embeddings)


def written_texts(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    tokens: int,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Ids (N, window) that the model writes itself at temperature 1, each text from a random first token: where no
    text of the kind it will read is at hand, what it learnt shows in what it writes (Liu et al. 2023, LLM-QAT). On the
    CPU through the kernels; raises RocLabError where they cannot run it."""
    model: Runner
    if torch.device(device).type == "cpu":
        model = CPURunner(checkpoint, quantize=None if is_quantized(checkpoint) else "int8")
    else:
        model = TorchRunner(checkpoint.load_model(device=device))
    window = _window(checkpoint)
    ordinary = [i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i)]
    draw = torch.Generator().manual_seed(seed)
    first = torch.randint(len(ordinary), (max(1, tokens // window),), generator=draw).tolist()
    starts = [[ordinary[i]] for i in first]
    texts: list[list[int]] = []
    for at in track(range(0, len(starts), TEXTS_AT_ONCE), "texts"):
        some = starts[at : at + TEXTS_AT_ONCE]
        params = [
            SamplingParams(temperature=1.0, seed=seed + at + i, max_new_tokens=window - 1, ignore_eos=True)
            for i in range(len(some))
        ]
        texts += [start + c.token_ids for start, c in zip(some, complete(model, tokenizer, some, params), strict=True)]
    return torch.tensor(texts)


@dataclass(frozen=True)
class Rounded:
    """A matrix (R, C) as step·q + minimum: `quants` (R, C) in 0 … 15, `step` and `minimum` (R, C / 32), all float32,
    the last two numbers of float16."""

    quants: Tensor
    step: Tensor
    minimum: Tensor

    def weight(self) -> Tensor:
        return self.quants * self.step.repeat_interleave(GROUP, 1) + self.minimum.repeat_interleave(GROUP, 1)

    def blocks(self) -> np.ndarray:
        """GGUF's Q4_1 blocks: uint8 (R·C / 32, 20)."""
        q = self.quants.to(torch.uint8).view(-1, GROUP).cpu()
        ends = torch.stack([self.step, self.minimum], -1).to(torch.float16).view(-1, 2).cpu().contiguous()
        packed = q[:, : GROUP // 2] | q[:, GROUP // 2 :] << 4
        return torch.cat([ends.view(torch.uint8), packed], 1).numpy()


@torch.inference_mode()
def round_layers(model: RocLMForCausalLM, texts: Tensor) -> Iterator[tuple[str, Rounded]]:
    """Round the matrices of all layers to four bits in place, but those that stay in int8, and give each by its
    parameter's name. `texts` (N, T): token ids to calibrate on; some ten thousand in all. Raises RocLabError for
    weights that are not finite."""
    x = model.model.embed_tokens(texts)
    places = torch.arange(texts.shape[1], device=texts.device)[None]
    positions = model.model.rotary_emb(x[:1], places)
    for index, layer in enumerate(track(model.model.layers, "layers")):
        for names in _STATIONS:
            H = _products(layer, names[0], x, positions)
            for name in names:
                if not stays_int8(name):
                    linear = layer.get_submodule(name)
                    assert isinstance(linear, nn.Linear)
                    if not (linear.weight.isfinite().all() and H.isfinite().all()):
                        raise RocLabError(f"model.layers.{index}.{name}: its weights or inputs are not finite numbers")
                    rounded = gptq(linear.weight, H)
                    linear.weight = nn.Parameter(rounded.weight(), requires_grad=False)
                    yield f"model.layers.{index}.{name}.weight", rounded
        x = torch.cat([layer(piece, positions, None) for piece in x.split(8)])


def _products(layer: nn.Module, name: str, x: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
    """Σ xᵀx (C, C) over the inputs that the layer's matrix of this name gets."""
    linear = layer.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    total = torch.zeros(linear.in_features, linear.in_features, device=x.device)

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        flat = inputs[0].flatten(0, 1)
        total.addmm_(flat.T, flat)
        raise _Reached

    hook = linear.register_forward_pre_hook(add)
    try:
        for piece in x.split(8):
            with contextlib.suppress(_Reached):
                layer(piece, positions, None)
    finally:
        hook.remove()
    return total


class _Reached(Exception):
    """The rest of the layer is not needed."""


def gptq(weight: Tensor, H: Tensor) -> Rounded:
    """`weight` (R, C) rounded for inputs x with Σ xᵀx = `H` (C, C)."""
    R, C = weight.shape
    H = H + (DAMPING * H.diagonal().mean() + 1e-12) * torch.eye(C, device=H.device)
    # U is upper triangular with UᵀU = H⁻¹: row j tells by how much each later column makes up for an error in column
    # j, once the columns before j are fixed.
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H.to(_precise(H)))), upper=True).float()
    weight = weight.detach().float()
    left, quants = weight.clone(), torch.empty_like(weight)
    step, minimum = (torch.empty(R, C // GROUP, device=left.device) for _ in range(2))
    for start in range(0, C, GROUP):
        end = start + GROUP
        group, errors = left[:, start:end], torch.empty(R, GROUP, device=left.device)
        d, m = choose_scale(group, U.diagonal()[start:end] ** -2)
        step[:, start // GROUP], minimum[:, start // GROUP] = d[:, 0], m[:, 0]
        for j in range(GROUP):
            at, w = start + j, group[:, j : j + 1]
            q = ((w - m) / d).round().clamp(0, LEVELS)
            quants[:, at : at + 1] = q
            error = (w - d * q - m) / U[at, at]
            errors[:, j : j + 1] = error
            group[:, j + 1 :] -= error * U[at, at + 1 : end]
        left[:, end:] -= errors @ U[start:end, end:]
    rounded = Rounded(quants, step, minimum)
    for _ in range(ROUNDS):
        rounded = _descend(_refit(rounded, weight, H), weight, H)
    return _refit(rounded, weight, H)


def _refit(rounded: Rounded, weight: Tensor, H: Tensor) -> Rounded:
    """The same quants with the steps and minima that serve `weight` best under H: a row's 2·C/32 of them together, by
    linear least squares."""
    R, C = weight.shape
    n = C // GROUP
    at_once = max(1, EQUATIONS // (2 * n) ** 2)
    pieces = [slice(start, start + at_once) for start in range(0, R, at_once)]
    p = torch.cat([_best_ends(rounded.quants[rows].view(-1, n, GROUP), weight[rows] @ H, H) for rows in pieces])
    step, minimum = _as_float16(p[:, 0::2]), _as_float16(p[:, 1::2])
    sound = step > 0  # a group of equal quants does not tell its step
    return Rounded(rounded.quants, torch.where(sound, step, rounded.step), torch.where(sound, minimum, rounded.minimum))


def _best_ends(q: Tensor, wanted: Tensor, H: Tensor) -> Tensor:
    """(R, 2n): step and minimum of each of n groups, for quants `q` (R, n, 32) and `wanted` = W·H (R, C).

    A row's weights are Σ pₖ·aₖ, with p its steps and minima and aₖ a group's quants or ones, so A·p = b with
    A = aᵀHa and b = aᵀHw."""
    R, n, _ = q.shape
    A, b = (torch.empty(R, *shape, dtype=_precise(H), device=H.device) for shape in ((2 * n, 2 * n), (2 * n,)))
    for g in range(n):
        rows = slice(g * GROUP, (g + 1) * GROUP)
        for k, a in ((2 * g, q[:, g]), (2 * g + 1, torch.ones_like(q[:, g]))):
            seen = (a @ H[rows]).view(R, n, GROUP)
            A[:, k, 0::2], A[:, k, 1::2] = (seen * q).sum(-1), seen.sum(-1)
            b[:, k] = (a * wanted[:, rows]).sum(-1)
    A += 1e-6 * torch.diag_embed(A.diagonal(dim1=1, dim2=2)) + 1e-9 * torch.eye(2 * n, device=H.device)
    return torch.linalg.solve(A, b).float()


def _precise(H: Tensor) -> torch.dtype:
    """Squared inputs differ by more than float32 holds; Apple's GPUs have nothing better."""
    return torch.float32 if H.device.type == "mps" else torch.float64


def _descend(rounded: Rounded, weight: Tensor, H: Tensor) -> Rounded:
    """Each quant in turn to where the loss is least, all others as they are."""
    quants, error = rounded.quants.clone(), weight - rounded.weight()
    for start in range(0, weight.shape[1], GROUP):
        end = start + GROUP
        d = rounded.step[:, start // GROUP, None]
        pull = error @ H[:, start:end]  # minus half the loss's slope in each weight
        for j in range(GROUP):
            at = start + j
            q = quants[:, at : at + 1]
            better = (q + pull[:, j : j + 1] / (H[at, at] * d)).round().clamp(0, LEVELS)
            change = d * (better - q)
            quants[:, at : at + 1] = better
            error[:, at : at + 1] -= change
            pull -= change * H[at, start:end]
    return Rounded(quants, rounded.step, rounded.minimum)


def choose_scale(group: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Step and minimum, (R, 1) each, for the rows of `group` (R, 32): the best, by squared error weighted with
    `importance` (32,), of some ranges, each refitted once to the numbers it gives."""
    low, high = group.amin(1, keepdim=True), group.amax(1, keepdim=True)
    weights = importance / importance.sum()
    best: tuple[Tensor, ...] = ()
    for share in SHRINKING:
        d = ((high - low) * share / LEVELS).clamp(min=1e-8)
        m = (low + high - (high - low) * share) / 2
        q = ((group - m) / d).round().clamp(0, LEVELS)
        mean_q, mean_w = (q @ weights)[:, None], (group @ weights)[:, None]
        spread = (q - mean_q) ** 2 @ weights
        together = ((q - mean_q) * (group - mean_w)) @ weights
        d = torch.where(spread > 0, together / spread, d[:, 0]).clamp(min=1e-7)[:, None]
        d, m = _as_float16(d), _as_float16(mean_w - d * mean_q)
        q = ((group - m) / d).round().clamp(0, LEVELS)
        loss = ((group - d * q - m) ** 2 @ weights)[:, None]
        found = (loss, d, m)
        best = tuple(torch.where(loss < best[0], a, b) for a, b in zip(found, best, strict=True)) if best else found
    return best[1], best[2]


def _as_float16(x: Tensor) -> Tensor:
    return x.to(torch.float16).float()
