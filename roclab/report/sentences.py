"""The report's sentences, each written from facts by a rule; templates/report.md decides where they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from roclab.core.sentences import Evidence, Sentence, counted, interval, listed, number, percent, pointer, sentences_of

Facts = Mapping[str, Any]
Said = Iterator[Sentence]
OPTIMISER = {"adamw": "AdamW", "sgd": "SGD with Nesterov’s momentum of 0.9"}
DATA = {"pets": "Oxford-IIIT Pet", "elpv": "ELPV solar cells"}
FEW_IMAGES = 10  # of a class: below, one image moves its recall by more than ten points


def sentences(facts: Facts) -> list[Sentence]:
    """All sentences; `topic` names the section of each."""
    return [replace(sentence, topic=topic) for topic, rule in TOPICS.items() for sentence in rule(facts)]


def _summary(facts: Facts) -> Said:
    found, data = facts["comparison"], facts["data"]
    arms, n = found["arms"], next(iter(found["arms"].values()))["n"]
    finished = counted(sum(run["finished"] for run in facts["runs"]), "finished run")
    kinds = counted(len(arms), "model and strategy", "models and strategies")
    text = f"{finished} of {kinds} on {data_name(facts)} ({len(data['classes'])} classes), evaluated on {n} "
    yield Sentence(f"{text}{split_word(facts['split'])} images.", key="/runs")
    highest = max(arm["top1_mean"] for arm in arms.values())
    best = [name for name, arm in arms.items() if arm["top1_mean"] == highest]
    ci = arms[best[0]]["top1_ci95"]
    yield Sentence(
        f"The highest mean accuracy is that of {listed(best)}: {percent(highest)} % (95 % interval {interval(ci)}).",
        Evidence("measured", {"top1_mean": highest, "top1_ci95": ci}, n, facts["split"]),
        pointer("comparison", "arms", best[0]),
    )
    if pairs := found["pairs"]:
        shown = sum(pair["shown"] for pair in pairs)
        text = (
            f"Of {counted(len(pairs), 'paired comparison')}, {shown} {'shows' if shown == 1 else 'show'} a difference"
        )
        yield Sentence(f"{text} that holds after Holm’s correction.", key="/comparison/pairs")
    if verify := facts["verify"]:
        passed = sum(check["passed"] for check in verify["checks"])
        yield Sentence(f"RocLM passes {passed} of {len(verify['checks'])} correctness checks.", key="/verify")


def _setup(facts: Facts) -> Said:
    machines = dict.fromkeys(
        f"{m.get('cpu', 'unknown')}, {m.get('cores')} cores, threads used: {m.get('threads')}, "
        + (", ".join(m.get("gpus") or []) or "no GPU")
        for m in (run["machine"] for run in facts["runs"])
    )
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in run["versions"].items()) for run in facts["runs"]
    )
    yield from (Sentence(f"Machine: {text}.", key="/runs") for text in machines)
    yield from (Sentence(f"Software: {text}.", key="/runs") for text in versions)
    if len(machines) > 1:
        yield Sentence("The runs were made on different machines or thread counts: their times do not compare.")


def _data(facts: Facts) -> Said:
    data = facts["data"]
    species = ", ".join(f"{n} {kind}s" for kind, n in data["species"].items())
    fractions = ", ".join(f"{100 * f:g} %" for f in data["val_fraction"])
    text = (
        f"{data_name(facts)}: {data['images']} images of {len(data['classes'])} classes"
        f"{f' ({species})' if species else ''}. The validation images ({fractions} of the training part) are cut from "
        "the training part alone, stratified by class, by the run’s seed; files with identical bytes stay on the same "
        "side. The test images are the same for every run."
    )
    yield Sentence(text, key="/data")


def _data_notes(facts: Facts) -> Said:
    data = facts["data"]
    if near := data["near_duplicates"]:
        text = (
            f"{counted(near, 'pair')} of near-duplicates lie across splits, {data['near_duplicates_with_test']} of "
            "them with the test split (perceptual hash); they were left where they are."
        )
        yield Sentence(text, key="/data/near_duplicates")
    if skipped := data["skipped"]:
        what = counted(skipped, "image or class", "images or classes")
        yield Sentence(f"{what} could not be used and were left out of everything.", key="/data/skipped")
    if absent := data["without_test_images"]:
        text = (
            f"The test split has no image of {', '.join(absent)}: nothing is measured there, and the means leave such"
        )
        yield Sentence(f"{text} classes out.", key="/data/without_test_images")
    if facts["split"] == "test":
        often = [f"{run['ref']} ({run['test_opened']} times)" for run in facts["runs"] if run["test_opened"] > 1]
        end = "after its training had ended; each run keeps the record (test_opened.json)."
        end = f"except {', '.join(often)}." if often else end
        yield Sentence(f"The test images were opened once for each run, {end}", key="/runs")


def _models(facts: Facts) -> Said:
    if random := [name for name in facts["arms"] if config_of(facts, name).get("weights") == "none"]:
        reach = "it reaches" if len(random) == 1 else "they reach"
        text = f"{listed(random)} began from random weights: what {reach} says nothing about the architecture with"
        yield Sentence(f"{text} pretrained weights.", key="/arms")


def how_trained(facts: Facts, arm: str) -> str:
    """An arm's training in words, from its configuration."""
    members = members_of(facts, arm)
    c = members[0]["config"]
    if c["strategy"] == "features":
        chosen = list(dict.fromkeys(f"{m['c']:g}" for m in members if m["c"]))
        parts = {
            "frozen backbone; the head is multinomial logistic regression on its standardised features (L-BFGS)": True,
            f"{c['image_size']} px": True,
            f"C = {listed(chosen)}, chosen on validation": chosen,
            f"{c.get('views')} views of each image": c.get("views", 1) > 1,
            "head trained again on train + val": c.get("refit"),
        }
        return "; ".join(words for words, said in parts.items() if said)
    optimizer = c.get("optimizer", "adamw")  # before there was a choice, it was AdamW
    accumulate = c.get("accumulate", 1)
    batch_norm = "frozen" if c.get("batch_norm") == "frozen" else "with batch statistics"
    parts = {
        f"all parameters are trained ({OPTIMISER.get(optimizer, optimizer)}, linear warm-up, half a cosine down)": True,
        f"{c['image_size']} px": True,
        f"learning rate {c['lr']:g} for the head, × {c['layer_decay']:g} for each earlier group of layers": True,
        f"weight decay {c['weight_decay']:g}": True,
        f"{c['epochs']} epochs, batches of {c['batch_size']}{f' × {accumulate}' if accumulate > 1 else ''}": True,
        f"label smoothing {c.get('label_smoothing')}": c.get("label_smoothing"),
        f"mixup {c.get('mixup')}": c.get("mixup"),
        f"CutMix {c.get('cutmix')}": c.get("cutmix"),
        f"average of weights, decay {c.get('ema')}": c.get("ema"),
        "starts from the trained head": c.get("lp_ft"),
        f"BatchNorm {batch_norm}": "resnet" in c["model"] or "efficientnet" in c["model"],
        "early epochs at lower resolution": c.get("progressive"),
        f"early layers frozen for {100 * (c.get('gradual') or 0):.0f} % of the epochs": c.get("gradual"),
    }
    return "; ".join(words for words, said in parts.items() if said)


def _curves(facts: Facts) -> Said:
    for i, run in enumerate(facts["runs"]):
        if not run["finished"]:
            last = f" Its log ends with: “{run['log']}”." if run["log"] else ""
            text = (
                f"{run['ref']} ({run['name']}) was cut after {counted(run['epochs_done'], 'epoch')} of "
                f"{run['config'].get('epochs')}: its curve is shown, its accuracy is not.{last}"
            )
            yield Sentence(text, key=pointer("runs", i))


def _classes(facts: Facts) -> Said:
    classes = next(iter(facts["per_class"].values())).values()
    few = min((row["support"] for row in classes if row["support"]), default=0)
    if few < FEW_IMAGES:
        text = (
            f"The smallest class that has {split_word(facts['split'])} images has {few}: a single image moves its "
            f"recall by {100 / max(few, 1):.0f} points, so single classes are not ranked by these figures alone."
        )
        yield Sentence(text, key="/per_class")


def _discussion(different: str, same: str) -> Callable[[Facts], Said]:
    """Pairs of arms that differ in their model alone, or in their strategy alone."""

    def rule(facts: Facts) -> Said:
        found = facts["comparison"]
        said = sentences_of(found)
        shown = []
        for i, pair in enumerate(found["pairs"]):
            a, b = config_of(facts, pair["a"]), config_of(facts, pair["b"])
            if a[same] == b[same] and a[different] != b[different]:
                shown.append(pair["shown"])
                text = f"{said[i].text} {_cost(found['arms'], pair)}{_also_differ(pair, a, b)}"
                yield replace(said[i], text=text, key=pointer("comparison", "pairs", i))
        if not shown:
            text = f"No two of the runs differ in this alone (the same {same} on both sides), so nothing can be said."
        elif len(shown) == 1:
            text = f"This comparison {'shows' if shown[0] else 'does not show'} a difference."
        else:
            verb = "shows" if sum(shown) < 2 else "show"
            text = f"Of these {len(shown)} comparisons, {sum(shown) or 'none'} {verb} a difference."
        yield Sentence(text, key="/comparison/pairs")

    return rule


def _cost(arms: Facts, pair: Facts) -> str:
    a, b = arms[pair["a"]], arms[pair["b"]]
    return (
        f"Time per epoch {number(a['mean_train_seconds_per_epoch'])} s against "
        f"{number(b['mean_train_seconds_per_epoch'])} s, epochs to convergence {span(a['epochs_to_convergence'])} "
        f"against {span(b['epochs_to_convergence'])} ({pair['a']} first)."
    )


def _also_differ(pair: Facts, a: Facts, b: Facts) -> str:
    """What else sets the two apart and may have made the difference: image size, pretrained weights."""
    found = []
    if a["image_size"] != b["image_size"]:
        found.append(f"in image size ({a['image_size']} against {b['image_size']} px)")
    if (a.get("weights") == "none") != (b.get("weights") == "none"):
        one = pair["a"] if a.get("weights") == "none" else pair["b"]
        found.append(f"in what they began from ({one} from random weights, the other from pretrained ones)")
    return f" The two also differ {listed(found)}, so the difference is not of one thing alone." if found else ""


def _roclm(facts: Facts) -> Said:
    if verify := facts["verify"]:
        count, passed = len(verify["checks"]), sum(check["passed"] for check in verify["checks"])
        text = f"{count} checks were run against an independent reference in a process of its own: {passed} passed, "
        yield Sentence(f"{text}{count - passed} failed.", key="/verify")


TOPICS: dict[str, Callable[[Facts], Said]] = {
    "Summary": _summary,
    "Setup": _setup,
    "Data": _data,
    "Data notes": _data_notes,
    "Models": _models,
    "Curves": _curves,
    "Differences": lambda facts: (replace(s, key=f"/comparison{s.key}") for s in sentences_of(facts["comparison"])),
    "Classes": _classes,
    "Architectures": _discussion("model", "strategy"),
    "Strategies": _discussion("strategy", "model"),
    "RocLM": _roclm,
}


# ---- words


def data_name(facts: Facts) -> str:
    return DATA.get(facts["data"]["name"], facts["data"]["name"])


def members_of(facts: Facts, arm: str) -> list[Facts]:
    return [run for run in facts["runs"] if run["ref"] in facts["arms"][arm]]


def config_of(facts: Facts, arm: str) -> Facts:
    return members_of(facts, arm)[0]["config"]


def split_word(split: str) -> str:
    return "validation" if split == "val" else split


def span(values: Sequence[int | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return "–" if not known else str(known[0]) if len(known) == 1 else f"{known[0]}–{known[-1]}"


def mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def refs(names: Iterable[str]) -> str:
    """R1, R2, R3, R7 → R1–R3, R7."""
    numbers = sorted({int(name[1:]) for name in names})
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(f"R{a}" if a == b else f"R{a}, R{b}" if b == a + 1 else f"R{a}–R{b}" for a, b in spans)
