"""Where and how runs go wrong, as plain data: everything the page and the report say is computed here.

Images are named by their number in the split (0 … N-1); `images` holds what is known of those that are named. An image
is the unit everywhere. Several runs over the same images are not several images: where there are more runs, an image's
score is its mean over them, and intervals and tests count images.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roclab.core.sentences import Sentence, sentences_from
from roclab.core.statistics import add_holm, difference, proportion, wilson
from roclab.vision.error_analysis.covariates import image_covariates
from roclab.vision.error_analysis.gather import JointPredictions, gather
from roclab.vision.error_analysis.gradcam import what_decided
from roclab.vision.error_analysis.likeness import add_likeness, pair_name
from roclab.vision.evaluate.metrics import calibration, classification_metrics
from roclab.vision.evaluate.pairs import chance_of, compare_pairs, verdicts
from roclab.vision.evaluate.run_reader import VisionRun

TEXTS = Path(__file__).with_name("sentences.txt")
SHOWN = 12  # images in a gallery
LOOKED_AT = 4  # pairs of confused classes whose images are shown
SHEET = 8  # images of the contact sheet
FEW = 5  # claims of one kind that are written out
PAIRS = 6
ENOUGH = 10  # images: fewer say nothing about heat maps
DRAWS = 9999  # of a permutation test: its smallest p-value is 1 in 10,000


def analyse(
    runs: Sequence[VisionRun],
    split: str | None = None,
    seed: int = 0,
    data_root: str | os.PathLike | None = None,
    decided: bool = True,
) -> dict[str, Any]:
    """Explain the errors of finished runs on the same images; everything returned can be written as JSON.

    `split` is "val" or "test"; None takes test if every run has been evaluated on it, else val. `data_root` says where
    the images are now, if they have moved. `decided` False leaves out what needs the networks (Grad-CAM). Images that
    are not there are named in `covariates.missing` and left out of what is measured on images; what follows from the
    predictions alone does not need them, and counts every image that was evaluated.

    `sentences` holds `roclab.core.sentences.Sentence` as JSON, whose keys lead to the facts. Raises `RocLabError` if
    the runs cannot be analysed together.
    """
    joint = gather(runs, split, data_root)
    left_out = joint.left_out()
    able = [name for name in joint.arms if name not in left_out]
    told = joint.of_arms(able) if able else joint  # of networks that guess there is nothing to explain
    pairs, shared, labels, confused = _pairs(joint), _shared(told), _label_errors(told), _confused(told)
    any_wrong = np.any(list(told.wrong_by_arm.values()), axis=0)
    losses, sheet = told.by_loss(any_wrong, SHOWN), contact_sheet(told, seed)
    telling = [(i, pair_name(row)) for row in confused[:LOOKED_AT] for i in row["images"]]
    looked = what_decided(told, shared, pairs, telling, seed) if decided and able else {"arms": {}, "shown": []}
    measured = image_covariates(told)
    add_likeness(confused[:LOOKED_AT], told, measured["colours"], with_features=decided and bool(able))
    named = [*losses, *shared["by_all"], *(row["image"] for row in (*labels["images"], *looked["shown"]))]
    named += [*sheet["images"], *(i for i, _ in telling)]
    named += [i for images in shared["only"].values() for i in images]
    named += [i for pair in pairs for side in ("only_a_wrong", "only_b_wrong") for i in pair[side]]
    found: dict[str, Any] = {
        "split": joint.split,
        "n": len(joint.labels),
        "classes": joint.classes,
        "species": joint.species,
        "root": str(joint.root),
        "seed": seed,
        "notes": joint.notes,
        "runs": [_run(joint, row) for row in range(len(joint.runs))],
        "arms": _arms(joint),
        "chance": chance_of(joint.labels),
        "told": able,
        "left_out": left_out,
        "told_runs": len(told.runs),
        "sheet": sheet,
        "pairs": pairs,
        "hardest": _hardest(told, seed),
        "confused": confused,
        "species_groups": _species(told),
        "losses": losses,
        "shared": shared,
        "calibration": _calibration(told, seed),
        "label_errors": labels,
        "decided": looked,
        "covariates": measured,
        "images": {str(i): _image(joint, i) for i in sorted(set(named))},
    }
    return found | {"sentences": [sentence.json() for sentence in sentences(found)]}


def sentences(facts: dict[str, Any]) -> list[Sentence]:
    """The written analysis (sentences.txt): every sentence states one computed fact, to which its `key` leads, under
    the heading `topic`.

    A sentence claims something (one is better, harder, overconfident …) only if its 95 % interval leaves out "no
    difference" and its p-value, after Holm's correction over the questions of its kind, is below 0.05. Otherwise it
    says that the images do not show it.
    """
    shown = list(zip(facts["pairs"], verdicts(facts["pairs"], facts["split"]), strict=True))
    if len(shown) > PAIRS:  # of many pairs, those that are shown to differ
        shown = sorted((row for row in shown if row[1].claims), key=lambda row: row[0]["p"])
    return sentences_from(TEXTS, facts, shown=shown, few=FEW, most=PAIRS, enough=ENOUGH, enumerate=enumerate)


def _run(joint: JointPredictions, row: int) -> dict[str, Any]:
    run = joint.runs[row]
    scores = classification_metrics(joint.labels, joint.probs[row], joint.classes)
    return {
        "name": run.path.name,
        "path": str(run.path),
        "arm": next(name for name, rows in joint.arms.items() if row in rows),
        "seed": run.config["seed"],
        "errors": int(joint.wrong[row].sum()),
        **{key: scores[key] for key in ("top1", "mean_per_class", "ci95", "macro_f1", "ece", "nll")},
    }


def _arms(joint: JointPredictions) -> dict[str, Any]:
    """Each arm's accuracy: the mean over its runs, with Wilson's interval over the images."""
    n = len(joint.labels)
    return {
        name: {
            "runs": [joint.runs[row].path.name for row in rows],
            **proportion(float((~joint.wrong[rows]).mean(0).sum()), n),
        }
        for name, rows in joint.arms.items()
    }


def _pairs(joint: JointPredictions) -> list[dict[str, Any]]:
    """Every two arms on the same images, as `compare_pairs` does, and the images on which one alone is wrong, by the
    mean probabilities of its runs."""
    correct = {
        name: {joint.runs[row].config["seed"]: ~joint.wrong[row] for row in rows} for name, rows in joint.arms.items()
    }
    found = compare_pairs(correct, joint.labels, unmatched=True)
    for pair in found:
        a, b = (joint.wrong_by_arm[pair[side]] for side in "ab")
        pair["both_wrong"] = int((a & b).sum())
        for side, other, alone in (("a", "b", a & ~b), ("b", "a", b & ~a)):
            pair[f"{side}_wrong_{other}_right"] = int(alone.sum())
            pair[f"only_{side}_wrong"] = joint.by_loss(alone, SHOWN)
    return found


def _hardest(joint: JointPredictions, seed: int) -> list[dict[str, Any]]:
    """The classes, hardest first: share correct with its interval, and whether the class is shown to be harder
    than the rest (`p`, Holm over the classes that have images). A class without images stands last, without a share."""
    wrong = joint.wrong_share
    rows = []
    for label, name in enumerate(joint.classes):
        inside = joint.labels == label
        row: dict[str, Any] = {"class": name, "species": (joint.species or {}).get(name)}
        row |= proportion(float((1 - wrong[inside]).sum()), int(inside.sum()))
        row["p_single"] = harder_than_the_rest(wrong, inside, seed) if inside.any() else None
        rows.append(row)
    seen = [row for row in rows if row["n"]]
    add_holm(seen, "p_single", "p")
    return sorted(rows, key=lambda row: (row["n"] == 0, row["share"] or 0.0, row.get("p_single") or 0.0))


def harder_than_the_rest(wrong: np.ndarray, inside: np.ndarray, seed: int = 0) -> float:
    """One-sided p-value: is the mean of `wrong` (N,) over the images `inside` (N,) bool higher than chance puts it?

    Chance: the same number of images drawn from all of them without replacement. Exact (Fisher 1935) where an image is
    only right or wrong; else `DRAWS` draws of how many images of each score come up.
    """
    levels, counts = np.unique(wrong, return_counts=True)
    k, observed = int(inside.sum()), float(wrong[inside].sum())
    if len(levels) < 2 or k == 0:
        return 1.0
    if set(levels) <= {0.0, 1.0}:
        from scipy.stats import hypergeom

        return float(hypergeom.sf(observed - 1, len(wrong), counts[1], k))
    draws = np.random.default_rng(seed).multivariate_hypergeometric(counts, k, size=DRAWS, method="marginals")
    return float((1 + (draws @ levels >= observed - 1e-9).sum()) / (1 + DRAWS))


def _confused(joint: JointPredictions) -> list[dict[str, Any]]:
    """Pairs of classes that are confused, most often first: `a_as_b` counts images of class a predicted as b.

    `p` asks whether the errors of the two classes go to each other more often than if they went to all other classes
    alike (binomial tail; Holm over all pairs of classes). Counts are means over the runs; for the test they are rounded
    against the claim.
    """
    from scipy.stats import binom

    classes = len(joint.classes)
    confused = np.zeros((classes, classes))  # mean over the runs
    run, image = np.nonzero(joint.wrong)
    np.add.at(confused, (joint.labels[image], joint.predicted[run, image]), 1 / len(joint.runs))
    rows = []
    for a, b in np.argwhere(np.triu(confused + confused.T)):
        of_either = (joint.labels == a) | (joint.labels == b)
        forth, back = float(confused[a, b]), float(confused[b, a])
        errors = float(joint.wrong_share[of_either].sum())
        hits, tries = int(np.floor(forth + back + 1e-9)), int(np.ceil(errors - 1e-9))
        rows.append(
            {
                "a": joint.classes[a],
                "b": joint.classes[b],
                "a_as_b": round(forth, 6),
                "b_as_a": round(back, 6),
                "errors": errors,
                **proportion(forth + back, int(of_either.sum())),
                "p_single": float(binom.sf(hits - 1, tries, 1 / (classes - 1))) if classes > 2 else 1.0,
            }
        )
    add_holm(rows, "p_single", "p", tests=classes * (classes - 1) // 2)
    rows = sorted(rows, key=lambda row: (-row["count"], row["p_single"], row["a"], row["b"]))
    for row in rows[:LOOKED_AT]:
        a, b = joint.classes.index(row["a"]), joint.classes.index(row["b"])
        ways, by_arm = ((a, b), (b, a)), np.stack(list(joint.predicted_by_arm.values()))  # (A, N)
        arms = sum(((joint.labels == x) & (by_arm == y)).sum(0) for x, y in ways)
        ranked = sorted(np.flatnonzero(arms), key=lambda i: (-arms[i], -joint.loss[i], i))
        row["images"] = [int(i) for i in ranked[: SHOWN // 2]]
    return rows


def contact_sheet(joint: JointPredictions, seed: int) -> dict[str, Any]:
    """A few images as the best arm sees them: one drawn from its mistakes, the others from what it gets right."""
    arm = max(joint.arms, key=lambda name: (float((~joint.wrong[joint.arms[name]]).mean()), name))
    right = joint.probs[joint.arms[arm]].mean(0).argmax(1) == joint.labels
    draw = np.random.default_rng(seed)
    wrong = draw.permutation(np.flatnonzero(~right))[:1]
    images = draw.permutation([*draw.permutation(np.flatnonzero(right))[: SHEET - len(wrong)], *wrong])
    return {"arm": arm, "images": [int(i) for i in images]}


def _species(joint: JointPredictions) -> dict[str, Any] | None:
    """Cats against dogs: accuracy of each, errors that cross the species against those that would by chance."""
    from scipy.stats import binomtest, fisher_exact

    if not joint.species or len(set(joint.species.values())) != 2:
        return None
    kinds = sorted(set(joint.species.values()))
    of_class = np.array([kinds.index(joint.species[name]) for name in joint.classes])
    of_image, predicted = of_class[joint.labels], of_class[joint.predicted]  # (N,), (R, N)
    wrong = joint.wrong_share
    found: dict[str, Any] = {"kinds": {}}
    for number, name in enumerate(kinds):
        inside = of_image == number
        right = proportion(float((1 - wrong[inside]).sum()), int(inside.sum()))
        found["kinds"][name] = {"classes": int((of_class == number).sum()), **right}
    sides = [(side["count"], side["n"]) for side in found["kinds"].values()]
    if all(n for _, n in sides):
        found["difference"] = {
            "a": kinds[0],
            "b": kinds[1],
            **difference(*sides[0], *sides[1]),
            "p": float(fisher_exact([[round(count), n - round(count)] for count, n in sides]).pvalue),
        }
    crossing = (predicted != of_image).mean(0)  # a dog predicted as a cat is an error: these are among `wrong`
    found["species_accuracy"] = proportion(float((1 - crossing).sum()), len(crossing))
    errors = float(wrong.sum())
    if errors:
        others = np.array([(of_class != kind).sum() for kind in of_image]) / (len(of_class) - 1)
        by_chance = float((wrong * others).sum() / errors)
        whole = max(1, round(errors))
        found["crossing"] = {
            "count": float(crossing.sum()),
            "n": errors,
            "share": float(crossing.sum() / errors),
            "ci95": wilson(float(crossing.sum()), errors),  # over as many images as one run has errors
            "by_chance": by_chance,
            "p": float(binomtest(min(whole, round(float(crossing.sum()))), whole, by_chance).pvalue),
        }
    return found


def _shared(joint: JointPredictions) -> dict[str, Any]:
    """Errors that all have in common, errors of one alone, and how many would be common by chance."""
    from scipy.stats import binomtest

    # what is held against each other: the arms, or the runs where there is one arm alone
    units = joint.wrong_by_arm
    if len(units) == 1:
        units = {run.path.name: joint.wrong[row] for row, run in enumerate(joint.runs)}
    wrong = np.stack(list(units.values()))  # (U, N)
    n, number = len(joint.labels), wrong.sum(0)
    by_all = number == len(wrong)
    chance = float(np.prod(wrong.mean(1)))
    found: dict[str, Any] = {
        "units": list(units),
        "wrong_by": [int((number == k).sum()) for k in range(len(wrong) + 1)],  # images that k of them predict wrongly
        "all": proportion(by_all.sum(), n),
        "by_all": joint.by_loss(by_all, 2 * SHOWN),
        "expected_if_independent": chance * n,
        "only_counts": {},
        "only": {},
    }
    if len(wrong) > 1:
        found["p"] = float(binomtest(int(by_all.sum()), n, chance, alternative="greater").pvalue) if chance else 1.0
        alone = {name: row & (number == 1) for name, row in units.items()}
        found["only_counts"] = {name: int(row.sum()) for name, row in alone.items()}
        found["only"] = {name: joint.by_loss(row, SHOWN) for name, row in alone.items()}
    return found


def _calibration(joint: JointPredictions, seed: int) -> dict[str, Any]:
    found = {name: calibration(joint.labels, joint.probs[rows], seed=seed) for name, rows in joint.arms.items()}
    add_holm(found.values())
    return found


def _label_errors(joint: JointPredictions) -> dict[str, Any]:
    """Images whose label the runs doubt, by confident learning (Northcutt et al. 2021) as cleanlab computes it.

    The probabilities are the mean over the runs, of images none of them was trained on. `agree` is the number of
    runs that name the same other class. Nothing is shown to be mislabelled: a person has to look.
    """
    probs = joint.probs.mean(0)
    if len(np.unique(joint.labels)) < 2:
        return {"found": 0, "images": [], "note": "the images are all of one class: nothing to compare labels with"}
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    probs = probs / probs.sum(1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with few images: the page says how many each has
        ranked = find_label_issues(joint.labels, probs, return_indices_ranked_by="self_confidence", n_jobs=1)
    quality = get_label_quality_scores(joint.labels, probs)
    best = probs.argmax(1)
    doubtful = [int(i) for i in ranked if best[i] != joint.labels[i]]
    return {
        "found": len(doubtful),
        "images": [
            {
                "image": i,
                "label": joint.classes[joint.labels[i]],
                "suggested": joint.classes[best[i]],
                "p_label": float(probs[i, joint.labels[i]]),
                "p_suggested": float(probs[i, best[i]]),
                "quality": float(quality[i]),
                "agree": int((joint.predicted[:, i] == best[i]).sum()),
            }
            for i in doubtful[:SHOWN]
        ],
    }


def _image(joint: JointPredictions, i: int) -> dict[str, Any]:
    """What is known of an image: file, true class, and each arm's prediction (mean probabilities)."""
    mean = {name: joint.probs[rows, i].mean(0) for name, rows in joint.arms.items()}
    return {
        "path": joint.paths[i],
        "sha256": joint.sha256[i],
        "true": joint.classes[joint.labels[i]],
        "wrong": float(joint.wrong_share[i]),
        "loss": float(joint.loss[i]),
        "predictions": {
            name: {"class": joint.classes[probs.argmax()], "probability": float(probs.max())}
            for name, probs in mean.items()
        },
    }
