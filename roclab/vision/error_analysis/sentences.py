"""The written analysis: every sentence states one computed fact, names it, and claims no more than the evidence holds.

A sentence claims something (one is better, harder, overconfident …) only if its 95 % interval leaves out "no
difference" and its p-value, after Holm's correction over the questions of its kind, is below 0.05. Otherwise it says
that the images do not show it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from roclab.core.sentences import (
    Sentence,
    about,
    amount,
    counted,
    interval,
    listed,
    p_value,
    percent,
    pointer,
    strength,
)
from roclab.vision.evaluate.pairs import verdicts

FEW = 5  # claims of one kind that are written out
PAIRS = 6
Facts = dict[str, Any]
Said = Iterator[Sentence]


def sentences(facts: Facts) -> list[Sentence]:
    """All sentences; the `key` of each leads to its fact, `topic` is the heading it belongs under."""
    return [replace(s, topic=topic) for topic, rules in TOPICS.items() for rule in rules for s in rule(facts)]


def _share(row: Facts) -> str:
    return f"{percent(row['share'])} %, {interval(row['ci95'])}"


def _of(row: Facts) -> str:
    return f"{amount(row['count'])} of {counted(row['n'], 'image')}"


def _holm(row: Facts, over: str = "") -> str:
    return f"{p_value(row['p_holm' if 'p_holm' in row else 'p'])} after Holm's correction{over}"


def _accuracy(facts: Facts) -> Said:
    for name, arm in facts["arms"].items():
        runs = len(arm["runs"])
        mean = f" (mean of {runs} seeds)" if runs > 1 else ""
        text = f"{name}: {_of(arm)} correct{mean}, {percent(arm['share'])} %, 95 % interval {interval(arm['ci95'])}."
        yield about(facts, pointer("arms", name), text, runs=runs)


def _shown_pairs(facts: Facts) -> list[tuple[Facts, Sentence]]:
    """Every pair with its verdict; of many pairs, those that are shown to differ."""
    rows = list(zip(facts["pairs"], verdicts(facts["pairs"], facts["split"]), strict=True))
    if len(rows) <= PAIRS:
        return rows
    return sorted((row for row in rows if row[1].claims), key=lambda row: row[0]["p"])


def _pairs(facts: Facts) -> Said:
    pairs, shown = facts["pairs"], _shown_pairs(facts)
    if len(pairs) > PAIRS:
        text = f"{len(shown)} of the {len(pairs)} pairs are shown to differ in accuracy."
        yield about(facts, "/pairs", text, shown=len(shown), pairs=len(pairs))
    yield from (sentence for _, sentence in shown[:PAIRS])


def _who_errs(facts: Facts) -> Said:
    for pair, sentence in _shown_pairs(facts)[:PAIRS]:
        text = (
            f"{pair['a']} is wrong where {pair['b']} is right on {counted(pair['a_wrong_b_right'], 'image')}, the "
            f"reverse holds for {pair['b_wrong_a_right']}, and both are wrong on {pair['both_wrong']}."
        )
        yield about(facts, sentence.key, text)


def _hardest(facts: Facts) -> Said:
    rows = facts["hardest"]
    seen = [(pointer("hardest", i), row) for i, row in enumerate(rows) if row["n"]]
    over = f" over {len(seen)} classes"
    shown = [(key, row) for key, row in seen if row["p"] < 0.05]
    for key, row in shown[:FEW]:
        text = f"{row['class']} is harder than the rest: {_of(row)} are correct ({_share(row)}; {_holm(row, over)})."
        yield about(facts, key, text, strength(row["p"]), classes=len(seen))
    if not shown and seen:
        key, row = seen[0]
        text = (
            f"No class is shown to be harder than the rest: even of {row['class']}, the lowest, {_of(row)} are "
            f"correct, which leaves {interval(row['ci95'])} % open ({_holm(row, over)})."
        )
        yield about(facts, key, text, "none", classes=len(seen))
    if empty := [row["class"] for row in rows if not row["n"]]:
        text = (
            f"Nothing can be said of {len(empty)} of {len(rows)} classes, which have no {facts['split']} image: "
            f"{listed(empty, FEW)}."
        )
        yield about(facts, "/hardest", text, empty=len(empty), classes=len(rows))


def _confused(facts: Facts) -> Said:
    if len(facts["classes"]) < 3:
        return  # with two classes there is one way to be wrong
    shown = [(i, row) for i, row in enumerate(facts["confused"]) if row["p"] < 0.05]
    for i, row in shown[:FEW]:
        text = (
            f"{row['a']} and {row['b']} are confused: {_of(row)} ({_share(row)}), {amount(row['a_as_b'])} the one way "
            f"and {amount(row['b_as_a'])} the other; that is more than errors spread over all classes would give "
            f"({_holm(row, ' over all pairs of classes')})."
        )
        yield about(facts, pointer("confused", i), text, strength(row["p"]))
    if not shown and facts["confused"]:
        row = facts["confused"][0]
        text = (
            "No two classes are shown to be confused more often than chance puts errors together; the most frequent "
            f"are {row['a']} and {row['b']}, {_of(row)} ({interval(row['ci95'])} %, {_holm(row)})."
        )
        yield about(facts, "/confused/0", text, "none")


def _species(facts: Facts) -> Said:
    groups = facts["species_groups"]
    if not groups:
        return
    right = groups["species_accuracy"]
    text = (
        f"The species is right in {percent(right['share'])} % of the images ({interval(right['ci95'])}, n = "
        f"{right['n']}), whether the class is or not."
    )
    yield about(facts, "/species_groups/species_accuracy", text)
    if crossing := groups.get("crossing"):
        (low, high), chance = crossing["ci95"], crossing["by_chance"]
        kind = strength(crossing["p"], high < chance or low > chance)
        unclear = "these errors do not show a preference for either species"
        end = unclear if kind == "none" else f"errors cross {'less' if high < chance else 'more'} often than that"
        mean = f" (mean of {len(facts['runs'])} runs)" if len(facts["runs"]) > 1 else ""
        text = (
            f"Of {amount(crossing['n'])} errors{mean} {amount(crossing['count'])} cross the species "
            f"({_share(crossing)}); errors spread over all other classes would cross in {percent(chance)} %: {end} "
            f"({p_value(crossing['p'])})."
        )
        yield about(facts, "/species_groups/crossing", text, kind)
    if gap := groups.get("difference"):
        low, high = gap["ci95"]
        kind = strength(gap["p"], low > 0 or high < 0)
        a, b = (gap["a"], gap["b"]) if gap["difference"] <= 0 else (gap["b"], gap["a"])
        one, other = groups["kinds"][a], groups["kinds"][b]
        unclear = f"The images do not show whether {a}s or {b}s are harder"
        start = unclear if kind == "none" else f"{a.capitalize()}s are harder than {b}s"
        towards = [low, high] if gap["difference"] > 0 else [-high, -low]
        text = (
            f"{start}: {percent(one['share'])} % of {one['n']} against {percent(other['share'])} % of {other['n']} are "
            f"correct (difference {percent(abs(gap['difference']))} points, {interval(towards)}; {p_value(gap['p'])})."
        )
        shares = {f"{name}_{key}": groups["kinds"][name][key] for name in (a, b) for key in ("share", "n")}
        yield about(facts, "/species_groups/difference", text, kind, **shares)


def _shared(facts: Facts) -> Said:
    shared = facts["shared"]
    units, all_wrong = shared["units"], shared["all"]
    if len(units) < 2:
        return
    kind = strength(shared["p"])
    more, unclear = "they err on the same images more often than that", "that is not shown to be more than chance"
    end = f"{unclear if kind == 'none' else more} ({p_value(shared['p'])})"
    text = (
        f"{counted(round(all_wrong['count']), 'image')} ({_share(all_wrong)}) are wrong with "
        f"{'both' if len(units) == 2 else f'all {len(units)}'}; were their errors independent, "
        f"{shared['expected_if_independent']:.1f} would be: {end}."
    )
    yield about(facts, "/shared", text, kind, **{name: all_wrong[name] for name in ("count", "share", "ci95")})
    if len(units) > 2:
        counts = [f"{name}: {count}" for name, count in shared["only_counts"].items()]
        text = f"Images that one alone predicts wrongly: {'; '.join(counts[:PAIRS])}{'; …' * (len(counts) > PAIRS)}."
        yield about(facts, "/shared/only_counts", text)


def _calibration(facts: Facts) -> Said:
    for name, row in facts["calibration"].items():
        (low, high), kind = row["gap_ci95"], strength(row["p_holm"])
        if kind == "none":
            end = "it is not shown to be miscalibrated"
        elif low > 0 or high < 0:
            end = f"it is {'over' if low > 0 else 'under'}confident"
        else:
            end = "its confidences are off; that they are too high or too low on the whole is not shown"
        text = (
            f"{name}: confidence {percent(row['confidence'])} %, accuracy {percent(row['accuracy'])} % (gap "
            f"{100 * row['gap']:+.1f} points, {interval(row['gap_ci95'])}); ECE {row['ece']:.3f} "
            f"{interval(row['ci95'], 3, 1)}, where perfect confidences would give {row['ece_if_calibrated']:.3f} on so "
            f"many images: {end} ({p_value(row['p_holm'])})."
        )
        yield about(facts, pointer("calibration", name), text, kind)


def _decided(facts: Facts) -> Said:
    for name, row in facts["decided"]["arms"].items():
        kind = strength(row["p_holm"], row["ci95"][0] > 0)
        end = "the images do not show that the heat maps point" if kind == "none" else "the heat maps point"
        text = (
            f"{name}: covering the hottest quarter of the heat map takes {percent(row['drop_hot'])} points of "
            f"probability from the predicted class, covering as much elsewhere {percent(row['drop_elsewhere'])} "
            f"(difference {percent(row['difference'])}, {interval(row['ci95'])}; {p_value(row['p_holm'])}; "
            f"{counted(row['images'], 'image')} drawn at random): {end} to what decides."
        )
        yield about(facts, pointer("decided", "arms", name), text, kind)


def _covariates(facts: Facts) -> Said:
    for name, row in facts["covariates"]["measures"].items():
        key, slope = pointer("covariates", "measures", name), row["slope"]
        if slope is None:
            text = f"Whether accuracy depends on the {row['says']} cannot be told: {row['why_no_slope']}."
            yield about(facts, key, text, "none")
            continue
        kind = strength(slope["p_holm"], slope["ci95"][0] > 1 or slope["ci95"][1] < 1)
        odds = f"odds ratio per standard deviation {slope['odds_ratio']:.2f} {interval(slope['ci95'], 2, 1)}"
        says = f"The images do not show that accuracy depends on the {row['says']}"
        if kind != "none":
            lowest, highest = _share(row["groups"][0]), _share(row["groups"][-1])
            says = (
                f"Accuracy {'rises' if slope['odds_ratio'] > 1 else 'falls'} with the {row['says']}: from {lowest} in "
            )
            says += f"the lowest group to {highest} in the highest"
        yield about(facts, key, f"{says} ({odds}; {_holm(slope)}).", kind, **slope)


def _labels(facts: Facts) -> Said:
    found = facts["label_errors"]
    text = found.get("note", "Confident learning doubts no label").rstrip(".") + "."
    if found["images"]:
        worst = found["images"][0]
        text = (
            f"Confident learning doubts {found['found']} of {facts['n']} labels; foremost "
            f"{facts['images'][str(worst['image'])]['path']}, labelled {worst['label']}, which the runs predict to be "
            f"{worst['suggested']} (mean probability {worst['p_suggested']:.2f} against {worst['p_label']:.2f}). A "
            "doubt is no proof: a person has to look."
        )
    yield about(facts, "/label_errors", text, labels=facts["n"])


TOPICS = {
    "Accuracy": (_accuracy, _pairs),
    "Errors of all, errors of one": (_who_errs, _shared),
    "Classes and confusions": (_hardest, _confused, _species),
    "Calibration": (_calibration,),
    "What decided": (_decided,),
    "What the image has to do with it": (_covariates,),
    "Labels worth a second look": (_labels,),
}
