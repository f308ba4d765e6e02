"""From image to tensor: torchvision's transforms bit for bit, seeds, shapes, the eight ways to turn a cell."""

import numpy as np
import pytest
import torch
from PIL import Image

from roclab.core.exceptions import RocLabError
from roclab.vision.data.transforms import Preprocessing, eval_transform, train_transform
from roclab.vision.models.classifier import build_model
from tests.vision.conftest import picture


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (224, 224), (150, 116), (1000, 230)])
@pytest.mark.parametrize("name", ["resnet50", "swin_t"])
def test_evaluation_is_torchvisions_own_preprocessing_bit_for_bit(name: str, size: tuple[int, int]):
    import torchvision

    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    image = picture(1, size)
    assert torch.equal(eval_transform(build_model(name, "none", 3).preprocessing)(image), weights.transforms()(image))


def test_normalisation_is_the_one_given():
    preprocessing = Preprocessing(8, 8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    out = eval_transform(preprocessing)(Image.new("RGB", (8, 8), (255, 0, 51)))
    assert torch.allclose(out[:, 0, 0], torch.tensor([1.8, -0.8, -0.1]))
    assert out.dtype == torch.float32
    assert type(out) is torch.Tensor


@pytest.mark.parametrize("image_size", [96, 160, 224, 320])
def test_other_sizes_keep_the_ratio_of_resize_to_crop(image_size: int):
    preprocessing = Preprocessing(256, 224)
    assert abs(preprocessing.resize_for(image_size) / image_size - 256 / 224) < 0.01
    assert eval_transform(preprocessing, image_size)(picture(2, (500, 333))).shape == (3, image_size, image_size)


def test_the_aspect_is_kept():
    """A circle stays a circle; squashing 400 x 200 into a square would make it an ellipse."""
    y, x = np.mgrid[:200, :400]
    circle = Image.fromarray((255 * ((x - 200) ** 2 + (y - 100) ** 2 < 60**2)).astype(np.uint8)).convert("RGB")
    inside = eval_transform(Preprocessing(100, 100, (0, 0, 0), (1, 1, 1)))(circle)[0] > 0.5
    assert inside.any(0).sum() == inside.any(1).sum() == 60


def test_training_draws_from_torchs_generator_alone():
    transform, image = train_transform(Preprocessing(), 64, randaugment=True, flips="dihedral"), picture(3, (200, 150))
    torch.manual_seed(5)
    first, second = transform(image), transform(image)
    torch.manual_seed(5)
    assert torch.equal(transform(image), first)
    assert not torch.equal(first, second)
    assert first.shape == (3, 64, 64)


def test_crops_keep_the_area_that_is_asked_for():
    """The colour runs from 0 at the left to 255 at the right: its range tells the width of the crop."""
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).convert("RGB")
    transform = train_transform(Preprocessing(mean=(0, 0, 0), std=(1, 1, 1)), 32, min_area=0.9)
    for seed in range(20):
        torch.manual_seed(seed)
        values = transform(ramp)[0]
        assert values.max() - values.min() > 0.75  # 0.9 of the area at an aspect of at most 3/4


def test_flips_reach_exactly_what_they_say():
    corner = Image.new("RGB", (32, 32))
    corner.paste((255, 255, 255), (0, 0, 16, 8))  # no symmetry: each of the eight looks different

    def reached(flips: str) -> set[bytes]:
        transform = train_transform(Preprocessing(mean=(0, 0, 0), std=(1, 1, 1)), 32, min_area=1.0, flips=flips)
        torch.manual_seed(0)
        whole = [transform(corner) for _ in range(400)]
        return {(view[0] > 0.5).numpy().tobytes() for view in whole if abs(view.mean() - 0.125) < 1e-6}

    upright = np.asarray(corner)[:, :, 0] > 127
    sides = {upright.tobytes(), upright[:, ::-1].tobytes()}
    assert reached("horizontal") == sides
    assert reached("dihedral") == {np.rot90(a, k).tobytes() for a in (upright, upright[:, ::-1]) for k in range(4)}
    with pytest.raises(RocLabError, match="flips"):
        train_transform(Preprocessing(), 32, flips="vertical")


def test_tensors_go_through_as_images_do():
    image = picture(4, (64, 64))
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # uint8 (3, H, W)
    same_size = Preprocessing(64, 64)
    assert torch.equal(eval_transform(same_size)(tensor), eval_transform(same_size)(image))
