"""Where and how runs go wrong, as plain data: everything the page and the report say is computed here.

Images are named by their number in the split (0 … N-1); `images` tells what is known of those that are spoken of.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from roclab.core.statistics import wilson
from roclab.vision.error_analysis.gather import Judged, gather
from roclab.vision.error_analysis.statistics import calibration, difference, harder_than_the_rest, holm, proportion
from roclab.vision.evaluate.metrics import classification_metrics, mcnemar, paired_bootstrap
from roclab.vision.evaluate.run_reader import VisionRun

SHOWN = 12  # images in a gallery


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
    predictions alone does not need them, and counts every image that was judged.

    `sentences` is a list of {text, key, evidence, numbers}: `key` is the path (JSON Pointer) of the fact that the
    sentence says, `evidence` "strong" (p < 0.01 after Holm's correction), "moderate" (p < 0.05), "none" (the images do
    not show it) or "measured" (a figure with its interval, no claim beyond it).

    Raises `RocLabError` if the runs cannot be judged together.
    """
    from roclab.vision.error_analysis.analysis import sentences
    from roclab.vision.error_analysis.covariates import image_covariates
    from roclab.vision.error_analysis.gradcam import what_decided

    judged = gather(runs, split, None if data_root is None else str(data_root))
    arms = _arms(judged)
    pairs = _pairs(judged)
    losses = _losses(judged)
    shared = _shared(judged)
    labels = _label_errors(judged)
    looked = what_decided(judged, shared, pairs, seed) if decided else {"arms": {}, "shown": []}
    found: dict[str, Any] = {
        "split": judged.split,
        "n": len(judged.labels),
        "classes": judged.classes,
        "species": judged.species,
        "root": str(judged.root),
        "seed": seed,
        "notes": judged.notes,
        "runs": [_run(judged, row) for row in range(len(judged.runs))],
        "arms": arms,
        "pairs": pairs,
        "hardest": _hardest(judged, seed),
        "confused": _confused(judged),
        "species_groups": _species(judged),
        "losses": losses,
        "shared": shared,
        "calibration": _calibration(judged, seed),
        "label_errors": labels,
        "decided": looked,
        "covariates": image_covariates(judged),
    }
    spoken = [*losses, *shared["by_all"], *(row["image"] for row in labels["images"])]
    spoken += [i for images in shared["only"].values() for i in images]
    spoken += [i for pair in pairs for side in ("only_a_wrong", "only_b_wrong") for i in pair[side]]
    spoken += [row["image"] for row in looked["shown"]]
    found["images"] = _images(judged, spoken)
    found["sentences"] = sentences(found)
    return found


def _run(judged: Judged, row: int) -> dict[str, Any]:
    run = judged.runs[row]
    scores = classification_metrics(judged.labels, judged.probs[row], judged.classes)
    return {
        "name": run.path.name,
        "path": str(run.path),
        "arm": next(name for name, rows in judged.arms.items() if row in rows),
        "seed": run.config.get("seed"),
        "errors": int(judged.wrong[row].sum()),
        **{key: scores[key] for key in ("top1", "mean_per_class", "ci95", "macro_f1", "ece", "nll")},
    }


def _arms(judged: Judged) -> dict[str, Any]:
    """Each arm's accuracy: the mean over its runs, with Wilson's interval over the images."""
    n = len(judged.labels)
    return {
        name: {
            "runs": [judged.runs[row].path.name for row in rows],
            **proportion(float((~judged.wrong[rows]).mean(0).sum()), n),
        }
        for name, rows in judged.arms.items()
    }


def _units(judged: Judged) -> dict[str, np.ndarray]:
    """What is held against each other, with whether it is wrong on each image (N,) bool: the arms (wrong if most of
    their runs are), or the runs where there is one arm alone."""
    if len(judged.arms) > 1:
        return {name: judged.wrong[rows].mean(0) > 0.5 for name, rows in judged.arms.items()}
    return {run.path.name: judged.wrong[row] for row, run in enumerate(judged.runs)}


def _by_loss(judged: Judged, images: Iterable[int]) -> list[int]:
    """The images, dearest first: mean negative log-likelihood over the runs."""
    loss = _loss(judged)
    return sorted((int(i) for i in images), key=lambda i: (-loss[i], i))


def _loss(judged: Judged) -> np.ndarray:
    """Negative log-likelihood of the true class in nats, mean over the runs (N,)."""
    given = judged.probs[:, np.arange(len(judged.labels)), judged.labels]  # (R, N)
    return -np.log(np.clip(given, 1e-12, None)).mean(0)


def _pairs(judged: Judged) -> list[dict[str, Any]]:
    """Every two arms on the same images: paired bootstrap, McNemar's test (per seed, where both have it; Holm's
    correction over the pairs in `p`), and the images that one calls rightly and the other does not."""
    found = []
    for a, b in combinations(judged.arms, 2):
        sides = [judged.arms[a], judged.arms[b]]
        by_seed = [{judged.runs[row].config.get("seed"): row for row in rows} for rows in sides]
        matched = [(by_seed[0][s], by_seed[1][s]) for s in by_seed[0] if s in by_seed[1]] or [
            (sides[0][0], sides[1][0])
        ]
        scores = [(~judged.wrong[rows]).mean(0) for rows in sides]
        wrong = [judged.wrong[rows].mean(0) > 0.5 for rows in sides]
        tests = [mcnemar(~judged.wrong[one], ~judged.wrong[other]) for one, other in matched]
        lists = [_by_loss(judged, np.flatnonzero(wrong[i] & ~wrong[1 - i])) for i in (0, 1)]
        found.append(
            {
                "a": a,
                "b": b,
                **paired_bootstrap(*scores),
                "mcnemar": tests,
                "median_p": float(np.median([test["p"] for test in tests])),
                "both_wrong": int((wrong[0] & wrong[1]).sum()),
                "a_wrong_b_right": len(lists[0]),
                "b_wrong_a_right": len(lists[1]),
                "only_a_wrong": lists[0][:SHOWN],
                "only_b_wrong": lists[1][:SHOWN],
            }
        )
    for pair, p in zip(found, holm([pair["median_p"] for pair in found]), strict=True):
        pair["p"] = p
    return found


def _hardest(judged: Judged, seed: int) -> list[dict[str, Any]]:
    """The classes, hardest first: share called rightly with its interval, and whether the class is shown to be harder
    than the rest (`p`, Holm over the classes that have images). A class without images stands last, without a share."""
    wrong = judged.wrong.mean(0)
    rows = []
    for label, name in enumerate(judged.classes):
        inside = judged.labels == label
        row: dict[str, Any] = {"class": name, "species": (judged.species or {}).get(name)}
        row |= proportion(float((1 - wrong[inside]).sum()), int(inside.sum()))
        row["p_single"] = harder_than_the_rest(wrong, inside, seed) if inside.any() else None
        rows.append(row)
    seen = [row for row in rows if row["n"]]
    for row, p in zip(seen, holm([row["p_single"] for row in seen]), strict=True):
        row["p"] = p
    return sorted(rows, key=lambda row: (row["n"] == 0, row["share"] or 0.0, row.get("p_single") or 0.0))


def _confused(judged: Judged) -> list[dict[str, Any]]:
    """Pairs of classes that are taken for each other, most often first.

    `p` asks whether the errors of the two classes go to each other more often than if they went to all other classes
    alike (binomial tail; Holm over all pairs of classes). Counts are means over the runs; for the test they are rounded
    against the claim.
    """
    from scipy.stats import binom

    counts: dict[tuple[int, int], float] = defaultdict(float)
    share = 1 / len(judged.runs)
    for run, i in zip(*np.nonzero(judged.wrong), strict=True):
        counts[int(judged.labels[i]), int(judged.predicted[run, i])] += share
    wrong, classes = judged.wrong.mean(0), len(judged.classes)
    rows = []
    for a, b in sorted({(min(pair), max(pair)) for pair in counts}):
        of_either = (judged.labels == a) | (judged.labels == b)
        forth, back = counts.get((a, b), 0.0), counts.get((b, a), 0.0)
        errors = float(wrong[of_either].sum())
        hits, tries = int(np.floor(forth + back + 1e-9)), int(np.ceil(errors - 1e-9))
        rows.append(
            {
                "a": judged.classes[a],
                "b": judged.classes[b],
                "a_called_b": round(forth, 6),
                "b_called_a": round(back, 6),
                "errors": errors,
                **proportion(forth + back, int(of_either.sum())),
                "p_single": float(binom.sf(hits - 1, tries, 1 / (classes - 1))) if classes > 2 else 1.0,
            }
        )
    for row, p in zip(rows, holm([row["p_single"] for row in rows], classes * (classes - 1) // 2), strict=True):
        row["p"] = p
    return sorted(rows, key=lambda row: (-row["count"], row["p_single"], row["a"], row["b"]))


def _species(judged: Judged) -> dict[str, Any] | None:
    """Cats against dogs: accuracy of each, errors that cross the species against those that would by chance."""
    from scipy.stats import binomtest, fisher_exact

    if not judged.species or len(set(judged.species.values())) != 2:
        return None
    kinds = sorted(set(judged.species.values()))
    of_class = np.array([kinds.index(judged.species[name]) for name in judged.classes])
    of_image, called = of_class[judged.labels], of_class[judged.predicted]  # (N,), (R, N)
    wrong = judged.wrong.mean(0)
    found: dict[str, Any] = {"kinds": {}}
    for number, name in enumerate(kinds):
        inside = of_image == number
        found["kinds"][name] = {
            "classes": int((of_class == number).sum()),
            **proportion(float((1 - wrong[inside]).sum()), int(inside.sum())),
        }
    sides = list(found["kinds"].values())
    if all(side["n"] for side in sides):
        found["difference"] = {
            "a": kinds[0],
            "b": kinds[1],
            **difference(sides[0]["count"], sides[0]["n"], sides[1]["count"], sides[1]["n"]),
            "p": float(fisher_exact([[round(s["count"]), s["n"] - round(s["count"])] for s in sides]).pvalue),
        }
    crossing = (called != of_image).mean(0)  # a dog taken for a cat is always an error, so these are among `wrong`
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


def _losses(judged: Judged) -> list[int]:
    """The wrong images that cost the runs most."""
    return _by_loss(judged, np.flatnonzero(judged.wrong.any(0)))[:SHOWN]


def _shared(judged: Judged) -> dict[str, Any]:
    """Errors that all have in common against errors of one alone, and how many would be common by chance."""
    from scipy.stats import binomtest

    units = _units(judged)
    wrong = np.stack(list(units.values()))  # (U, N)
    n, number = len(judged.labels), wrong.sum(0)
    by_all = np.flatnonzero(number == len(wrong))
    chance = float(np.prod(wrong.mean(1)))
    found: dict[str, Any] = {
        "units": list(units),
        "wrong_by": [int((number == k).sum()) for k in range(len(wrong) + 1)],  # images that k of them call wrongly
        "all": proportion(len(by_all), n),
        "by_all": _by_loss(judged, by_all)[: 2 * SHOWN],
        "expected_if_independent": chance * n,
        "only_counts": {},
        "only": {},
    }
    if len(wrong) > 1:
        found["p"] = float(binomtest(len(by_all), n, chance, alternative="greater").pvalue) if chance else 1.0
        for name, row in units.items():
            alone = np.flatnonzero(row & (number == 1))
            found["only_counts"][name] = len(alone)
            found["only"][name] = _by_loss(judged, alone)[:SHOWN]
    return found


def _calibration(judged: Judged, seed: int) -> dict[str, Any]:
    found = {name: calibration(judged.labels, judged.probs[rows], seed=seed) for name, rows in judged.arms.items()}
    for row, p in zip(found.values(), holm([row["p"] for row in found.values()]), strict=True):
        row["p_holm"] = p
    return found


def _label_errors(judged: Judged) -> dict[str, Any]:
    """Images whose label the runs doubt, by confident learning (Northcutt et al. 2021) as cleanlab computes it.

    The probabilities are the mean over the runs, of images none of them was trained on. `agree` is the number of
    runs that name the same other class. Nothing is shown to be mislabelled: a person has to look.
    """
    probs = judged.probs.mean(0)
    if len(np.unique(judged.labels)) < 2:
        return {"found": 0, "images": [], "note": "the images are all of one class: nothing to compare labels with"}
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    probs = probs / probs.sum(1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with few images: the page says how many each has
        ranked = find_label_issues(judged.labels, probs, return_indices_ranked_by="self_confidence", n_jobs=1)
    quality = get_label_quality_scores(judged.labels, probs)
    best = probs.argmax(1)
    doubtful = [int(i) for i in ranked if best[i] != judged.labels[i]]
    return {
        "found": len(doubtful),
        "images": [
            {
                "image": i,
                "label": judged.classes[judged.labels[i]],
                "suggested": judged.classes[best[i]],
                "p_label": float(probs[i, judged.labels[i]]),
                "p_suggested": float(probs[i, best[i]]),
                "quality": float(quality[i]),
                "agree": int((judged.predicted[:, i] == best[i]).sum()),
            }
            for i in doubtful[:SHOWN]
        ],
    }


def _images(judged: Judged, numbers: Iterable[int]) -> dict[str, Any]:
    """What is known of the images spoken of: file, true class, and what each arm calls it (mean probabilities)."""
    loss, wrong = _loss(judged), judged.wrong.mean(0)
    found = {}
    for i in sorted(set(numbers)):
        calls = {}
        for name, rows in judged.arms.items():
            probs = judged.probs[rows, i].mean(0)
            best = int(probs.argmax())
            calls[name] = {"class": judged.classes[best], "probability": float(probs[best])}
        found[str(i)] = {
            "path": judged.paths[i],
            "sha256": judged.sha256[i],
            "true": judged.classes[judged.labels[i]],
            "wrong": float(wrong[i]),
            "loss": float(loss[i]),
            "calls": calls,
        }
    return found
