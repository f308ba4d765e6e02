"""Heat maps against known answers: a network whose map can be worked out, and the sum rule of linear heads."""

import numpy as np
import pytest
import torch
from torch import nn

from roclab.core.exceptions import RocLabError
from roclab.vision.data.transforms import Preprocessing
from roclab.vision.error_analysis.gradcam import Activation, activation, covered, grad_cam, hottest
from roclab.vision.models.classifier import Classifier, build_model


class Permute(nn.Module):
    def __init__(self, *axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.permute(*self.axes)


class Mean(nn.Module):
    """Mean over the places of (B, S, S, C)."""

    def forward(self, x):
        return x.mean((1, 2))


def colour_network(channels_last):
    """Class c answers to the mean of colour c alone, minus half of the next one's."""
    tail = [Permute(0, 2, 3, 1), Mean()] if channels_last else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    module = nn.Sequential(nn.AvgPool2d(4), *tail, nn.Linear(3, 3))
    with torch.no_grad():
        module[-1].weight.copy_(torch.eye(3) - 0.5 * torch.roll(torch.eye(3), 1, 1))
        module[-1].bias.fill_(0.3)
    return Classifier("colours", module.eval(), Preprocessing(32, 32), "", str(len(module) - 1))


def random_model(name, classes):
    """A network whose head says something: a fresh one is zero, and so is every map of it."""
    model = build_model(name, "none", classes)
    nn.init.normal_(model.head.weight, std=0.02)
    nn.init.normal_(model.head.bias)
    return model


@pytest.fixture
def patches():
    """Red in the upper left quarter, green in the lower right: (1, 3, 32, 32)."""
    image = torch.zeros(1, 3, 32, 32)
    image[0, 0, :16, :16] = 1
    image[0, 1, 16:, 16:] = 1
    return image


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_map_is_what_can_be_worked_out(patches, channels_last):
    model = colour_network(channels_last)
    where = activation(model, 32)
    assert where.layout == ("BHWC" if channels_last else "BCHW")
    maps, logits = grad_cam(model, patches, [0], where)
    expected = torch.zeros(8, 8)
    expected[:4, :4] = 1 / 64  # the weight 1 of red over 64 places; green speaks against class 0 and is cut off
    torch.testing.assert_close(maps[0], expected)
    torch.testing.assert_close(logits, model.module(patches).detach())
    signed, _ = grad_cam(model, patches, [0], where, rectify=False)
    assert signed[0, 7, 7] == pytest.approx(-0.5 / 64)
    assert grad_cam(model, patches, [1], where)[0][0, 7, 7] == pytest.approx(1 / 64)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("resnet50", "BCHW"),
        ("efficientnet_lite0", "BCHW"),
        ("swin_t", None),  # torchvision permutes its (B, H, W, C) before pooling: either is right, the sum tells
        ("timm/swin_tiny_patch4_window7_224", "BHWC"),
        ("test_resnet", "BCHW"),
    ],
)
def test_the_map_sums_to_the_logit_where_the_head_is_linear_on_the_mean(name, layout):
    """Σ_places Σ_k α_k A_k = w_c · mean(A) = logit - bias: false if places and channels were mixed up."""
    torch.manual_seed(0)
    model = random_model(name, 5)
    size = model.image_size or (64 if name == "test_resnet" else 224)
    where = activation(model, size)
    assert layout in (None, where.layout)
    images = torch.randn(2, 3, size, size)
    maps, logits = grad_cam(model, images, [1, 4], where, rectify=False)
    assert maps.shape[0] == 2
    assert maps.shape[1] == maps.shape[2] > 1
    expected = logits[[0, 1], [1, 4]] - model.head.bias[[1, 4]]
    torch.testing.assert_close(maps.sum((1, 2)), expected.detach(), rtol=1e-3, atol=1e-4)


def test_a_wrong_layout_would_be_noticed():
    torch.manual_seed(0)
    model = random_model("timm/swin_tiny_patch4_window7_224", 5)
    right = activation(model, 224)
    images = torch.randn(1, 3, 224, 224)
    maps, logits = grad_cam(model, images, [0], Activation(right.module, "BCHW"), rectify=False)
    assert maps.shape[1:] != (7, 7)
    expected = logits[0, 0] - model.head.bias[0].detach()
    assert not torch.isclose(maps.sum(), expected, atol=1e-4)


def test_a_plain_vision_transformer_is_read_from_its_tokens():
    torch.manual_seed(0)
    model = random_model("timm/vit_tiny_patch16_224", 3)
    where = activation(model, 224)
    assert (where.layout, where.prefix) == ("BTC", 1)
    images = torch.randn(1, 3, 224, 224)
    maps, _ = grad_cam(model, images, [2], where, rectify=False)
    assert maps.shape == (1, 14, 14)
    assert maps.abs().max() > 0


def test_a_network_without_places_is_refused():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    with pytest.raises(RocLabError, match="no activation with places"):
        activation(Classifier("flat", module, Preprocessing(32, 32), "", "1"), 32)


def test_the_check_covers_a_quarter_where_it_is_hottest(patches):
    heat = np.zeros((8, 8))
    heat[:4, :4] = 1
    cells = hottest(heat)
    assert cells.sum() == 16
    assert cells[:4, :4].all()
    hidden = covered(patches, cells)
    assert hidden[0, 0].abs().sum() == 0  # the red patch is gone
    torch.testing.assert_close(hidden[0, 1], patches[0, 1])
