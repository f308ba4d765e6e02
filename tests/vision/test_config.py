"""What a run may be told, and what it takes where nothing is said."""

from __future__ import annotations

import pytest

from roclab.core.exceptions import RocLabError
from roclab.vision.config import TrainConfig, not_of, with_defaults


@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", -1.0), ("lr", 1e30), ("ema", 2.0), ("weight_decay", -1.0), ("gradual", 5.0), ("layer_decay", 0.0),
     ("min_area", 0.0), ("min_area", 3.0), ("mixup", -1.0), ("label_smoothing", 3.0), ("workers", -1), ("patience", -1),
     ("clip", float("nan")), ("epochs", 0), ("seed", -1), ("seed", 2**32)],
)  # fmt: skip
def test_a_number_out_of_bounds_is_named_before_anything_is_made(option, value):
    with pytest.raises(RocLabError, match=f"--{option.replace('_', '-')} .*must be"):
        TrainConfig(**{option: value})


def test_the_rate_follows_the_optimizer():
    def chosen(**values):
        full = with_defaults(TrainConfig(strategy="finetune", **values), 224)
        return full.optimizer, full.lr, full.label_smoothing

    assert chosen() == ("sgd", 1e-2, 0.0)
    assert chosen(optimizer="adamw") == ("adamw", 1e-3, 0.1)
    assert chosen(lp_ft=False) == ("adamw", 1e-3, 0.1)
    assert chosen(model="swin_t", optimizer="sgd") == ("sgd", 1e-3, 0.1)
    assert chosen(model="resnet50", lp_ft=False) == ("sgd", 2e-2, 0.1)
    assert chosen(model="resnet50", lp_ft=False, optimizer="adamw") == ("adamw", 1e-3, 0.1)
    assert chosen(model="resnet50", lr=0.5) == ("sgd", 0.5, 0.0)
    assert chosen(model="resnet50", weights="none") == ("adamw", 5e-4, 0.1)


def test_random_weights_have_nothing_to_keep():
    fresh = with_defaults(TrainConfig(model="resnet50", weights="none", strategy="finetune"), 224)
    trained = with_defaults(TrainConfig(model="resnet50", strategy="finetune"), 224)
    assert (fresh.lp_ft, fresh.layer_decay, fresh.batch_norm) == (False, 1.0, "train")
    assert (trained.lp_ft, trained.batch_norm) == (True, "frozen")
    assert trained.layer_decay < 1
    assert with_defaults(TrainConfig(model="resnet50", strategy="finetune", lp_ft=False), 224).lp_ft is False


def test_flags_of_the_other_strategy_are_named():
    given = ["strategy", "data", "lr", "label_smoothing", "views", "seed"]
    assert not_of("features", given) == ["--lr", "--label-smoothing"]
    assert not_of("finetune", given) == ["--views"]
