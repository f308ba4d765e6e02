"""What the report says of made-up facts: each sentence says what is true and nothing else."""

from __future__ import annotations

import re

import pytest

from roclab.core.sentences import sentences_from, sentences_of
from roclab.core.statistics import wilson
from roclab.report import words
from roclab.report.kit import TEMPLATES
from roclab.report.training import overfitting
from roclab.vision.evaluate.pairs import verdicts

RESNET, RESNET_TUNED = "ResNet-50, frozen", "ResNet-50, fine-tuned"
SWIN, SWIN_TUNED = "Swin-T, frozen", "Swin-T, fine-tuned"
CONFIGS = {
    RESNET: ("resnet50", "features"), RESNET_TUNED: ("resnet50", "finetune"),
    SWIN: ("swin_t", "features"), SWIN_TUNED: ("swin_t", "finetune"),
}  # fmt: skip


def course(finetuned=True, **changes):
    found = {"finetuned": finetuned, "length": 6, "kept": 4 if finetuned else None, "lowest": 4}
    return found | {"val_loss": [2.0, 0.5, 0.51], "overfits": None, "sizes": [], "seconds": 60.0} | changes


def pair(a, b, difference, ci95, p=0.5, at_chance=(), disagree=5):
    test = {"only_a": disagree, "only_b": disagree, "p": p}
    found = {"a": a, "b": b, "seeds": [0], "mcnemar": [test], "median_p": p, "p": p, "over_seeds": None}
    shown = not at_chance and p < 0.05 and (ci95[0] > 0 or ci95[1] < 0)
    return found | {"difference": difference, "ci95": ci95, "at_chance": list(at_chance), "shown": shown}


def made_up(accuracies, pairs=(), n=100, classes=37, support=10, guessing=(), weights="v1", **more):
    """Facts of one run an arm; `more` replaces facts, "courses" those of single arms."""
    courses, convergence = more.pop("courses", {}), more.pop("convergence", {})
    runs, arms, scores = [], {}, {}
    for number, (name, top1) in enumerate(accuracies.items(), start=1):
        model, strategy = CONFIGS[name]
        config = {"model": model, "strategy": strategy, "seed": 0, "image_size": 64, "epochs": 6, "weights": weights}
        ref = f"R{number}"
        machine = {"cpu": "a CPU", "cores": 2, "threads": 2}
        about = {"versions": {"torch": "2"}, "machine": machine, "test_opened": 1, "log": None, "finished": True}
        runs.append({"ref": ref, "name": ref, "config": config, **about})
        tuned = strategy == "finetune"
        arms[name] = {
            "n": n, "runs": [ref], "seeds": [0], "top1_mean": top1, "top1_ci95": wilson(top1 * n, n),
            "above_chance": name not in guessing, "train_seconds": 60.0 if tuned else 20.0, "head_seconds": 20.0,
            "epochs_to_convergence": [convergence.get(name, 3) if tuned else None], "kept_start": [],
            "mean_train_seconds_per_epoch": 10.0 if tuned else None,
        }  # fmt: skip
        row = {"support": support, "f1": top1, "precision": top1, "recall": top1}
        scores[name] = {"n": n, "top1": top1, "ci95": wilson(top1 * n, n), "classes": dict.fromkeys("abcd", row)}
        if courses.get(name, {}).get("kept") == 0:
            arms[name]["kept_start"] = [0]
    said = verdicts(list(pairs), "test")
    compared = {"arms": arms, "chance": 1 / classes, "pairs": list(pairs), "sentences": [s.json() for s in said]}
    names = [f"class {i}" for i in range(classes)]
    data = {"name": "things", "images": 5 * n, "classes": names, "species": {}, "val_fraction": [0.2], "skipped": 0}
    data |= {"near_duplicates": 0, "near_duplicates_with_test": 0, "without_test_images": []}
    training = {
        run["ref"]: course(CONFIGS[name][1] == "finetune", **courses.get(name, {}))
        for run, name in zip(runs, accuracies, strict=True)
    }
    facts = {
        "split": "test", "runs": runs, "arms": {name: arms[name]["runs"] for name in arms}, "comparison": compared,
        "data": data, "training": training, "scores": {"test": scores, "val": scores}, "verify": None, "curve": None,
        "gallery": None, "errors": None,
    }  # fmt: skip
    return facts | more


def said(facts, topic=None):
    differences = sentences_of(facts["comparison"])
    found = sentences_from(TEMPLATES / "sentences.txt", facts, words=words, differences=differences)
    texts = [s.text for s in found if topic in (None, s.topic)]
    assert not any("None" in text or "  " in text or re.search(r" [.,;]", text) for text in texts), texts
    return " ".join(texts)


def two(difference, ci95, p=0.5, **more):
    """ResNet-50 frozen at 80 % against fine-tuned, which differs by so much (fine-tuned minus frozen)."""
    low, high = ci95
    row = pair(RESNET, RESNET_TUNED, -difference, [-high, -low], p, **more.pop("pair", {}))
    return made_up({RESNET: 0.8, RESNET_TUNED: 0.8 + difference}, [row], **more)


def test_fine_tuning_pays_only_where_it_is_shown():
    better, open_, worse = two(0.06, [0.02, 0.1], 0.001), two(0.06, [-0.01, 0.1]), two(-0.06, [-0.1, -0.02], 0.001)
    assert "ResNet-50, fine-tuned is better than ResNet-50, frozen (+6.0 points" in said(better, "Strategies")
    assert "Here fine-tuning pays" in said(better, "Strategies")
    assert "is better than" not in said(open_)
    assert "pays" not in said(open_)
    assert "A gain of more than 10.0 points by fine-tuning lies outside the interval" in said(open_, "Strategies")
    assert "ResNet-50, frozen is better than ResNet-50, fine-tuned" in said(worse, "Strategies")
    assert "Here freezing is enough, and better" in said(worse, "Strategies")
    assert "3.0 times as long" in said(better, "Strategies")


def test_equal_accuracies_are_called_equal():
    facts = two(0.0, [-0.05, 0.05])
    assert f"that of {RESNET} and {RESNET_TUNED}: 80.0 %" in said(facts, "Key")
    assert "are right equally often" in said(facts, "Key")
    same = two(0.0, [0.0, 0.0], 1.0, pair={"disagree": 0})
    assert "are right on the same images: nothing tells them apart" in said(same, "Strategies")
    assert "is better than" not in said(facts) + said(same)


def test_of_networks_at_chance_only_their_accuracy_is_said():
    pairs = [pair(SWIN, SWIN_TUNED, 0.02, [0.01, 0.03], 0.001, [SWIN, SWIN_TUNED])]
    facts = made_up({SWIN: 0.05, SWIN_TUNED: 0.03}, pairs, guessing=(SWIN, SWIN_TUNED), weights="none")
    text = said(facts)
    assert "No network here is shown to be above chance" in said(facts, "Key")
    assert "no convergence is claimed" in said(facts, "Curves")
    assert "Nothing is compared with a network" in said(facts, "Key")
    for claim in ("is better than", "pays", "is enough", "overfits", "converged", "confused", "separate"):
        assert claim not in text, claim


def test_one_at_chance_beside_one_that_is_not():
    pairs = [pair(RESNET, SWIN, 0.75, [0.65, 0.85], 0.001, [SWIN])]
    facts = made_up({RESNET: 0.8, SWIN: 0.05}, pairs, guessing=(SWIN,))
    assert "is better than" not in said(facts)
    assert "Every comparison of architectures here has a network that is not shown to be above chance" in said(facts)
    assert f"{SWIN} is not shown to be above chance (2.7 %): nothing more is said of it" in said(facts, "Summary")


def test_a_run_that_kept_epoch_zero_is_a_frozen_backbone():
    facts = two(0.0, [0.0, 0.0], 1.0, pair={"disagree": 0}, courses={RESNET_TUNED: {"kept": 0}})
    assert "no epoch of fine-tuning was better on validation than the head it began with" in said(facts, "Curves")
    assert "Fine-tuning kept the head it began with for seed 0" in said(facts, "Strategies")
    assert "weights of epoch 0" not in said(facts)


def test_overfitting_is_said_where_the_losses_part():
    rise = {"from": 5, "val_loss": [0.5, 0.8], "train_loss": [0.3, 0.1], "val_top1": [0.8, 0.8]}
    text = said(two(0.06, [0.02, 0.1], 0.001, courses={RESNET_TUNED: {"overfits": rise}}), "Curves")
    assert "From epoch 5 on it overfits: its validation loss rises from 0.500 to 0.800" in text
    assert "its validation accuracy still rises" not in text
    assert "still falling" in said(two(0.0, [-0.1, 0.1], courses={RESNET_TUNED: {"lowest": 6}}), "Curves")
    assert "too few to see overfitting" in said(two(0.0, [-0.1, 0.1], courses={RESNET_TUNED: {"length": 2}}), "Curves")


@pytest.mark.parametrize(
    ("val", "train", "begins"),
    [
        ([1.0, 0.5, 0.7, 0.9], [1.0, 0.6, 0.4, 0.2], 3),
        ([1.0, 0.5, 0.505, 0.502], [1.0, 0.6, 0.4, 0.2], None),  # within 2 %
        ([1.0, 0.5, 0.7, 0.9], [1.0, 0.6, 0.7, 0.8], None),  # training went wrong as well
        ([1.0, 0.8, 0.7, 0.6], [1.0, 0.6, 0.4, 0.2], None),
    ],
)
def test_overfitting_begins_after_the_lowest_validation_loss(val, train, begins):
    rows = [
        {"epoch": i, "val_loss": v, "train_loss": t, "val_top1": 0.5}
        for i, (v, t) in enumerate(zip(val, train, strict=True), start=1)
    ]
    found = overfitting(rows)
    assert (found and found["from"]) == begins


def test_which_converges_in_fewer_epochs():
    accuracies = {RESNET_TUNED: 0.8, SWIN_TUNED: 0.8}
    pairs = [pair(RESNET_TUNED, SWIN_TUNED, 0.0, [-0.1, 0.1])]
    fast = said(made_up(accuracies, pairs, convergence={RESNET_TUNED: 2, SWIN_TUNED: 5}), "Curves")
    assert f"{RESNET_TUNED} converged in fewer epochs than {SWIN_TUNED}: 2 against 5 (one run each" in fast
    same = said(made_up(accuracies, pairs), "Curves")
    assert "is not shown: 3, 3 epochs" in same


def test_one_run_alone_is_compared_with_nothing():
    facts = made_up({RESNET: 0.8})
    assert "There is one model and strategy here, so nothing is compared." in said(facts, "Key")
    assert "1 finished run of 1 model and strategy" in said(facts, "Summary")
    assert "No two of the runs differ in the architecture alone" in said(facts, "Architectures")
    assert "No two of the runs differ in the strategy alone" in said(facts, "Strategies")


def test_few_test_images_and_few_classes():
    facts = made_up({RESNET: 0.8}, n=9, classes=3, support=3)
    assert "has 3: a single image moves its recall by 33 points" in said(facts, "Classes")
    assert "lowest F1" not in said(facts, "Classes")
    assert "cats" not in said(facts, "Data")  # no species


def test_pretraining_of_one_alone_is_named_as_what_differs():
    pairs = [pair(RESNET, SWIN, 0.3, [0.2, 0.4], 0.001)]
    facts = made_up({RESNET: 0.8, SWIN: 0.5}, pairs)
    facts["runs"][1]["config"]["weights"] = "none"
    text = said(facts, "Architectures")
    assert f"what they began from ({SWIN} from random weights" in text
    assert "the difference is not of the architecture alone" in text
    assert "most of this difference comes from the pretrained weights" in text


CONFUSED = {
    "a": "x", "b": "y", "count": 6.0, "n": 20, "share": 0.3, "ci95": [0.1, 0.5], "a_as_b": 4.0, "b_as_a": 2.0,
    "pictures": [], "heats": [],
}  # fmt: skip


def confused(p, **likeness):
    gallery = {"confused": [CONFUSED | {"p": p} | likeness], "apart": [], "losses": [], "labels in doubt": []}
    facts = made_up({RESNET: 0.8}, gallery=gallery, errors={"found": {"told_runs": 1}})
    return said(facts, "Confused")


def test_pairs_are_called_confused_where_it_is_shown():
    assert "x and y are confused: 6 of their 20 images" in confused(0.001, same_species=None)
    assert "is not shown" in confused(0.2, same_species=True)
    assert "are confused" not in confused(0.2)
    near = confused(0.001, same_species=True, colour_closer=0.5, features_closer=0.95)
    assert "both are of one species" in near
    assert "the frozen features hardly separate x and y" in near
    assert "the reason is open" in confused(0.001, same_species=False, colour_closer=0.5, features_closer=0.5)
    assert "species" not in confused(0.001)


def point(strategy, images, top1, above=True):
    label = f"ResNet-50, {strategy}"
    return {"label": label, "images": images, "top1": top1, "ci95": wilson(100 * top1, 100), "above_chance": above}


def test_a_curve_says_where_which_strategy_is_ahead():
    gap = {"model": "ResNet-50", "at_chance": [], "shown": True}
    curve = {
        "points": [point("frozen", 5, 0.6), point("frozen", 50, 0.9), point("fine-tuned", 5, 0.03, above=False)],
        "gaps": [gap | {"images": 5, "difference": -0.2}, gap | {"images": 20, "difference": 0.0, "shown": False},
                 gap | {"images": 50, "difference": 0.1}],
    }  # fmt: skip
    text = said(two(0.0, [-0.1, 0.1], curve=curve), "Curve of images")
    assert "ResNet-50, frozen goes from 60.0 %" in text
    assert "ResNet-50, fine-tuned goes" not in text
    assert (
        "frozen is better with 5 images a class; fine-tuned is better with 50 images a class; with 20 no difference"
        in text
    )
    assert "No curve" in said(two(0.0, [-0.1, 0.1]), "Curve of images")
