"""The written analysis: every sentence says one computed fact, names it, and claims no more than the evidence holds.

A sentence claims something (one is better, harder, too sure …) only if its 95 % interval leaves out "no difference"
and its p-value, after Holm's correction over the questions of its kind, is below 0.05. Otherwise it says that the
images do not show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from roclab.vision.compare import verdict

FEW = 5  # claims of one kind that are written out
PAIRS = 6


def sentences(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """All sentences, in the page's order: {text, key, evidence, numbers}. `key` leads to the fact (`lookup`)."""
    parts = (_accuracy, _pairs, _hardest, _confused, _species, _shared, _calibration, _decided, _covariates, _labels)
    return [sentence for part in parts for sentence in part(facts)]


def pointer(*parts: str | int) -> str:
    """A key: a JSON Pointer (RFC 6901), such as "/pairs/0"; names of arms may hold slashes."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def lookup(facts: dict[str, Any], key: str) -> Any:
    """The fact a key leads to."""
    found: Any = facts
    for part in key.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        found = found[int(name)] if isinstance(found, list) else found[name]
    return found


def claims(p: float | None, interval_shows: bool = True) -> str:
    """The strength of the evidence: "strong", "moderate" or "none"."""
    if p is None or not interval_shows or p >= 0.05:
        return "none"
    return "strong" if p < 0.01 else "moderate"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def interval(ci: Sequence[float], scale: float = 100, digits: int = 1) -> str:
    return f"[{scale * ci[0]:.{digits}f}, {scale * ci[1]:.{digits}f}]"


def amount(count: float) -> str:
    """A mean over runs: whole where it is whole."""
    return f"{count:.0f}" if abs(count - round(count)) < 0.05 else f"{count:.1f}"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _say(text: str, key: str, evidence: str, *numbers: float) -> dict[str, Any]:
    return {"text": text, "key": key, "evidence": evidence, "numbers": [float(x) for x in numbers]}


def _images(n: int) -> str:
    return f"{n} image" if n == 1 else f"{n} images"


Sentences = Iterator[dict[str, Any]]


def _accuracy(facts: dict[str, Any]) -> Sentences:
    for name, arm in facts["arms"].items():
        runs = len(arm["runs"])
        mean = f" (mean of {runs} seeds)" if runs > 1 else ""
        yield _say(
            f"{name} is right on {amount(arm['count'])} of {_images(arm['n'])}{mean}: {percent(arm['share'])}, 95 % "
            f"interval {interval(arm['ci95'])}.",
            pointer("arms", name),
            "measured",
            arm["count"],
            arm["n"],
            100 * arm["share"],
            *(100 * x for x in arm["ci95"]),
            runs,
        )


def _pairs(facts: dict[str, Any]) -> Sentences:
    rows = list(enumerate(facts["pairs"]))
    strengths = {i: claims(pair["p"], pair["ci95"][0] > 0 or pair["ci95"][1] < 0) for i, pair in rows}
    if len(rows) > PAIRS:
        shown = [i for i in strengths if strengths[i] != "none"]
        yield _say(
            f"{len(shown)} of the {len(rows)} pairs are shown to differ in accuracy.",
            pointer("pairs"),
            "measured",
            len(shown),
        )
        rows = sorted((row for row in rows if row[0] in shown), key=lambda row: row[1]["p"])[:PAIRS]
    for i, pair in rows:
        single = {k: v for k, v in pair.items() if k != "p"} if len(facts["pairs"]) == 1 else pair
        tests = [test["p"] for test in pair["mcnemar"]]
        numbers = (100 * pair["difference"], *(100 * x for x in pair["ci95"]), pair["p"], *tests)
        yield _say(verdict(single), pointer("pairs", i), strengths[i], *numbers)
        yield _say(
            f"{pair['a']} is wrong where {pair['b']} is right on {_images(pair['a_wrong_b_right'])}, the reverse holds "
            f"for {pair['b_wrong_a_right']}, and both are wrong on {pair['both_wrong']}.",
            pointer("pairs", i),
            "measured",
            pair["a_wrong_b_right"],
            pair["b_wrong_a_right"],
            pair["both_wrong"],
        )


def _hardest(facts: dict[str, Any]) -> Sentences:
    rows = list(enumerate(facts["hardest"]))
    seen = [(i, row) for i, row in rows if row["n"]]
    shown = [(i, row) for i, row in seen if row["p"] < 0.05]
    for i, row in shown[:FEW]:
        yield _say(
            f"{row['class']} is harder than the rest: {amount(row['count'])} of its {_images(row['n'])} are right "
            f"({percent(row['share'])}, {interval(row['ci95'])}; {p_value(row['p'])} after Holm's correction over "
            f"{len(seen)} classes).",
            pointer("hardest", i),
            claims(row["p"]),
            row["count"],
            row["n"],
            100 * row["share"],
            *(100 * x for x in row["ci95"]),
            row["p"],
            len(seen),
        )
    if not shown and seen:
        i, row = seen[0]
        yield _say(
            f"No class is shown to be harder than the rest: even of {row['class']}, the lowest, "
            f"{amount(row['count'])} of {_images(row['n'])} are right, which leaves {interval(row['ci95'])} % open "
            f"({p_value(row['p'])} after Holm's correction over {len(seen)} classes).",
            pointer("hardest", i),
            "none",
            row["count"],
            row["n"],
            *(100 * x for x in row["ci95"]),
            row["p"],
            len(seen),
        )
    empty = [(i, row) for i, row in rows if not row["n"]]
    if empty:
        names = ", ".join(row["class"] for _, row in empty[:FEW]) + (", …" if len(empty) > FEW else "")
        yield _say(
            f"Nothing can be said of {len(empty)} of {len(rows)} classes, which have no {facts['split']} "
            f"image: {names}.",
            pointer("hardest", empty[0][0]),
            "measured",
            len(empty),
            len(rows),
        )


def _confused(facts: dict[str, Any]) -> Sentences:
    if len(facts["classes"]) < 3:
        return  # with two classes there is one way to be wrong
    shown = [(i, row) for i, row in enumerate(facts["confused"]) if row["p"] < 0.05]
    for i, row in shown[:FEW]:
        yield _say(
            f"{row['a']} and {row['b']} are taken for each other: {amount(row['count'])} of their {_images(row['n'])} "
            f"({percent(row['share'])}, {interval(row['ci95'])}), {amount(row['a_called_b'])} the one way and "
            f"{amount(row['b_called_a'])} the other; that is more than errors spread over all classes would give "
            f"({p_value(row['p'])} after Holm's correction over all pairs of classes).",
            pointer("confused", i),
            claims(row["p"]),
            row["count"],
            row["n"],
            100 * row["share"],
            *(100 * x for x in row["ci95"]),
            row["a_called_b"],
            row["b_called_a"],
            row["p"],
        )
    if not shown and facts["confused"]:
        row = facts["confused"][0]
        yield _say(
            f"No two classes are shown to be taken for each other more often than chance puts errors together; the "
            f"most frequent are {row['a']} and {row['b']}, {amount(row['count'])} of {_images(row['n'])} "
            f"({interval(row['ci95'])} %, {p_value(row['p'])} after Holm's correction).",
            pointer("confused", 0),
            "none",
            row["count"],
            row["n"],
            *(100 * x for x in row["ci95"]),
            row["p"],
        )


def _species(facts: dict[str, Any]) -> Sentences:
    groups = facts["species_groups"]
    if not groups:
        return
    right = groups["species_accuracy"]
    mean = f" (mean of {len(facts['runs'])} runs)" if len(facts["runs"]) > 1 else ""
    yield _say(
        f"The species is right in {percent(right['share'])} of the images ({interval(right['ci95'])}, n = "
        f"{right['n']}), whether the class is or not.",
        pointer("species_groups", "species_accuracy"),
        "measured",
        100 * right["share"],
        *(100 * x for x in right["ci95"]),
        right["n"],
    )
    if crossing := groups.get("crossing"):
        low, high = crossing["ci95"]
        outside = high < crossing["by_chance"] or low > crossing["by_chance"]
        evidence = claims(crossing["p"], outside)
        end = {
            True: f"errors cross {'less' if high < crossing['by_chance'] else 'more'} often than that",
            False: "these errors do not show a preference for either species",
        }[evidence != "none"]
        yield _say(
            f"Of {amount(crossing['n'])} errors{mean} {amount(crossing['count'])} cross the species "
            f"({percent(crossing['share'])}, {interval(crossing['ci95'])}); errors spread over all other classes would "
            f"cross in {percent(crossing['by_chance'])}: {end} ({p_value(crossing['p'])}).",
            pointer("species_groups", "crossing"),
            evidence,
            crossing["n"],
            crossing["count"],
            100 * crossing["share"],
            100 * low,
            100 * high,
            100 * crossing["by_chance"],
            crossing["p"],
        )
    if gap := groups.get("difference"):
        kinds = groups["kinds"]
        low, high = gap["ci95"]
        evidence = claims(gap["p"], low > 0 or high < 0)
        a, b = (gap["a"], gap["b"]) if gap["difference"] <= 0 else (gap["b"], gap["a"])
        start = (
            f"{a.capitalize()}s are harder than {b}s"
            if evidence != "none"
            else f"The images do not show whether {a}s or {b}s are harder"
        )
        yield _say(
            f"{start}: {percent(kinds[a]['share'])} of {kinds[a]['n']} against {percent(kinds[b]['share'])} of "
            f"{kinds[b]['n']} are right (difference {100 * abs(gap['difference']):.1f} points, "
            f"{interval(_towards(gap))}; {p_value(gap['p'])}).",
            pointer("species_groups", "difference"),
            evidence,
            *(100 * kinds[k]["share"] for k in (a, b)),
            *(kinds[k]["n"] for k in (a, b)),
            100 * abs(gap["difference"]),
            *(100 * x for x in _towards(gap)),
            gap["p"],
        )


def _towards(gap: dict[str, Any]) -> list[float]:
    """The interval of a difference told as a positive number."""
    low, high = gap["ci95"]
    return [low, high] if gap["difference"] > 0 else [-high, -low]


def _shared(facts: dict[str, Any]) -> Sentences:
    shared = facts["shared"]
    units, all_wrong = shared["units"], shared["all"]
    if len(units) < 2:
        return
    expected = shared["expected_if_independent"]
    evidence = claims(shared["p"])
    end = (
        "they err on the same images more often than that"
        if evidence != "none"
        else "that is not shown to be more than chance"
    )
    each = "both" if len(units) == 2 else f"all {len(units)}"
    yield _say(
        f"{_images(round(all_wrong['count']))} ({percent(all_wrong['share'])}, {interval(all_wrong['ci95'])}) are "
        f"wrong with {each}; were their errors independent, {expected:.1f} would be: {end} ({p_value(shared['p'])}).",
        pointer("shared"),
        evidence,
        all_wrong["count"],
        100 * all_wrong["share"],
        *(100 * x for x in all_wrong["ci95"]),
        expected,
        shared["p"],
    )
    if len(units) > 2:
        alone = ", ".join(f"{name} {count}" for name, count in list(shared["only_counts"].items())[:PAIRS])
        yield _say(
            f"Images that one alone calls wrongly: {alone}{', …' if len(units) > PAIRS else ''}.",
            pointer("shared", "only_counts"),
            "measured",
            *list(shared["only_counts"].values())[:PAIRS],
        )


def _calibration(facts: dict[str, Any]) -> Sentences:
    for name, row in facts["calibration"].items():
        low, high = row["gap_ci95"]
        evidence = claims(row["p_holm"])
        if evidence == "none":
            end = "it is not shown to be miscalibrated"
        elif low > 0:
            end = "it is too sure of itself"
        elif high < 0:
            end = "it is not sure enough of itself"
        else:
            end = "its confidences are off; that they are too high or too low on the whole is not shown"
        yield _say(
            f"{name}: confidence {percent(row['confidence'])}, accuracy {percent(row['accuracy'])} (gap "
            f"{100 * row['gap']:+.1f} points, {interval(row['gap_ci95'])}); ECE {row['ece']:.3f} "
            f"{interval(row['ci95'], 1, 3)}, where perfect confidences would give {row['ece_if_calibrated']:.3f} on so "
            f"many images: {end} ({p_value(row['p_holm'])}).",
            pointer("calibration", name),
            evidence,
            100 * row["confidence"],
            100 * row["accuracy"],
            100 * row["gap"],
            100 * low,
            100 * high,
            row["ece"],
            *row["ci95"],
            row["ece_if_calibrated"],
            row["p_holm"],
        )


def _decided(facts: dict[str, Any]) -> Sentences:
    for name, row in facts["decided"]["arms"].items():
        low, high = row["ci95"]
        evidence = claims(row["p_holm"], low > 0)
        end = (
            "the heat maps point to what decides"
            if evidence != "none"
            else "the images do not show that the heat maps point to what decides"
        )
        yield _say(
            f"{name}: covering the hottest quarter of the heat map takes {100 * row['drop_hot']:.1f} points of "
            f"probability from the class called, covering as much elsewhere {100 * row['drop_elsewhere']:.1f} "
            f"(difference {100 * row['difference']:.1f}, {interval(row['ci95'])}; {p_value(row['p_holm'])}; "
            f"{_images(row['images'])} drawn at random): {end}.",
            pointer("decided", "arms", name),
            evidence,
            100 * row["drop_hot"],
            100 * row["drop_elsewhere"],
            100 * row["difference"],
            100 * low,
            100 * high,
            row["p_holm"],
            row["images"],
        )


def _covariates(facts: dict[str, Any]) -> Sentences:
    for name, row in facts["covariates"]["measures"].items():
        key, slope = pointer("covariates", "measures", name), row["slope"]
        if slope is None:
            yield _say(
                f"Whether accuracy depends on the {row['says']} cannot be told: {row['why_no_slope']}.", key, "none"
            )
            continue
        evidence = claims(slope["p_holm"], slope["ci95"][0] > 1 or slope["ci95"][1] < 1)
        first, last = row["groups"][0], row["groups"][-1]
        ratio = f"odds ratio per standard deviation {slope['odds_ratio']:.2f} {interval(slope['ci95'], 1, 2)}"
        numbers = [slope["odds_ratio"], *slope["ci95"], slope["p_holm"]]
        if evidence == "none":
            text = (
                f"The images do not show that accuracy depends on the {row['says']} ({ratio}; "
                f"{p_value(slope['p_holm'])} after Holm's correction)."
            )
        else:
            way = "rises" if slope["odds_ratio"] > 1 else "falls"
            text = (
                f"Accuracy {way} with the {row['says']}: from {percent(first['share'])} {interval(first['ci95'])} in "
                f"the lowest group to {percent(last['share'])} {interval(last['ci95'])} in the highest ({ratio}; "
                f"{p_value(slope['p_holm'])} after Holm's correction)."
            )
            numbers += [100 * x for group in (first, last) for x in (group["share"], *group["ci95"])]
        yield _say(text, key, evidence, *numbers)


def _labels(facts: dict[str, Any]) -> Sentences:
    found = facts["label_errors"]
    if not found["images"]:
        yield _say(
            found.get("note", "Confident learning doubts no label").rstrip(".") + ".",
            pointer("label_errors"),
            "measured",
        )
        return
    worst = found["images"][0]
    path = facts["images"][str(worst["image"])]["path"]
    yield _say(
        f"Confident learning doubts {found['found']} of {facts['n']} labels; foremost {path}, labelled "
        f"{worst['label']}, which the runs call {worst['suggested']} (mean probability {worst['p_suggested']:.2f} "
        f"against {worst['p_label']:.2f}). A doubt is no proof: a person has to look.",
        pointer("label_errors"),
        "measured",
        found["found"],
        facts["n"],
        worst["p_suggested"],
        worst["p_label"],
    )
