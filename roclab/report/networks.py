"""The networks of a report, measured on the real modules: parameters, operations, and the layout of their stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from roclab.vision.evaluate.run_reader import model_name
from roclab.vision.models.classifier import Classifier, build_model


def describe_network(model: str, classes: int, image_size: int) -> dict[str, Any]:
    """What is known of an architecture for images of `image_size` px: `parameters`, `flops` of one image (a
    multiplication and an addition are two, as torch.utils.flop_counter counts), and its `stages` where it is a ResNet
    with bottlenecks or a Swin Transformer: blocks, channels, and the side of the square of places."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.random.fork_rng(devices=[]):
        network = build_model(model, "none", classes, image_size)
    module: Any = network.module
    counter = FlopCounterMode(display=False)
    parts = _parts(module)
    with torch.inference_mode(), _sides(parts) as sides, counter:
        module(torch.zeros(1, 3, image_size, image_size))
    return {
        "name": model_name(model),
        "image_size": image_size,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "head": sum(parameter.numel() for parameter in network.head.parameters()),
        "features": network.head.in_features,
        "flops": counter.get_total_flops(),
        "kind": _kind(module),
        "stem": _stem(module) if parts else None,
        "stages": [_stage(network, part) | {"side": sides[i]} for i, part in enumerate(parts)],
    }


def _kind(module: Any) -> str | None:
    if hasattr(module, "layer1") and hasattr(module.layer1[0], "conv3"):
        return "resnet"
    return "swin" if type(module).__name__ == "SwinTransformer" and hasattr(module, "features") else None


def _stem(module: Any) -> str:
    """What stands before the stages, in words."""
    if _kind(module) == "swin":
        side = module.features[0][0].kernel_size[0]
        return f"patches of\n{side} × {side} px"
    sizes = [
        (getattr(part, "kernel_size", None), getattr(part, "stride", None)) for part in (module.conv1, module.maxpool)
    ]
    words = [
        f"{k} × {k} {what}, / {s}"
        for (kernel, stride), what in zip(sizes, ("conv", "pool"), strict=True)
        if kernel and stride
        for k, s in [
            (kernel[0] if isinstance(kernel, tuple) else kernel, stride[0] if isinstance(stride, tuple) else stride)
        ]
    ]
    return "\n".join(["stem", *words])


def _parts(module: Any) -> list[Any]:
    """The stages of the architectures that are known."""
    if _kind(module) == "resnet":
        return [module.layer1, module.layer2, module.layer3, module.layer4]
    # torchvision's Swin: patches, then stages and the merging of patches in turn
    return list(module.features[1::2]) if _kind(module) == "swin" else []


def _stage(network: Classifier, part: Any) -> dict[str, Any]:
    block = part[-1]
    if _kind(network.module) == "resnet":
        return {"blocks": len(part), "inner": block.conv1.out_channels, "channels": block.conv3.out_channels}
    attention = block.attn  # the last block of a stage shifts its windows, the one before does not
    return {
        "blocks": len(part),
        "channels": block.norm1.normalized_shape[0],
        "heads": attention.num_heads,
        "window": attention.window_size[0],
        "shift": attention.shift_size[0],
    }


@contextmanager
def _sides(parts: list[Any]) -> Iterator[list[int]]:
    """The side of each part's square of places, filled in when an image goes through."""
    sides = [0] * len(parts)

    def watch(i: int) -> Any:  # (B, C, H, W) or (B, H, W, C): the side is the axis between
        return lambda _part, _given, out: sides.__setitem__(i, int(out.shape[2]))

    hooks = [part.register_forward_hook(watch(i)) for i, part in enumerate(parts)]
    try:
        yield sides
    finally:
        for hook in hooks:
            hook.remove()
