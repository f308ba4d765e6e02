"""The report's sections that are not about training itself: errors, discussion, RocLM, tokenizer lab, demo study,
people, appendices, provenance. A part that was not given is said to be missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from roclab.report.facts import sentences
from roclab.report.page import Page, esc, interval, number, percent, refs
from roclab.report.words import config_of, deviation, kind_of, listed, precision_recall_f1, revision, span
from roclab.vision.error_analysis.page import EVIDENCE

# The pictures of `vision errors` and of the tokenizer lab, where they do not bring captions of their own.
CAPTIONS = {
    "calibration.png": "How often predictions of a given confidence are right, 95 % intervals; the diagonal is perfect",
    "confused.png": "The pairs of classes most often taken for each other",
    "covariates.png": "Accuracy by properties of the image, with 95 % intervals",
    "hardest.png": "The classes that are least often right, with 95 % intervals; the dashed line is the mean",
    "shared.png": "How many images are wrong with one, two or more of the models and strategies",
}

# Where the facts of `vision errors` belong, by the first part of their keys; its pictures have the same names.
TOPICS = {
    "pairs": "Errors of all, errors of one",
    "shared": "Errors of all, errors of one",
    "hardest": "Classes and confusions",
    "confused": "Classes and confusions",
    "species_groups": "Classes and confusions",
    "calibration": "Calibration",
    "decided": "What decided",
    "covariates": "What the image has to do with it",
    "label_errors": "Labels worth a second look",
}


def errors(page: Page, facts: dict[str, Any]) -> None:
    page.heading("Error analysis")
    if not facts["errors"]:
        page.say("*No error analysis was given to this report, so nothing is said here.*")
        return
    page.say(
        "Each sentence follows from a computed fact; in brackets, how strong the evidence is. The page with the images"
        " is beside this report (errors/index.html)."
    )
    tool(
        page, facts["errors"], "errors",
        lambda sentence: TOPICS.get(f"{sentence.get('key', '')}//".split("/")[1]),  # of /hardest/0
        lambda figure: TOPICS.get(Path(figure).stem),
    )  # fmt: skip


def discussion(page: Page, facts: dict[str, Any]) -> None:
    found = facts["comparison"]
    page.heading("Architectures and strategies")
    page.say(
        "Which is better is said only where the paired tests show it; costs are measured. Nothing here goes beyond"
        " these images, weights and settings."
    )
    for title, same, words in (("Architectures", 1, "strategy"), ("Strategies", 0, "model")):
        page.heading(title, 2)
        pairs = [
            pair for pair in found["pairs"]
            if (a := kind_of(facts, pair["a"]))[same] == (b := kind_of(facts, pair["b"]))[same] and a != b
        ]  # fmt: skip
        if not pairs:
            page.say(
                f"*No two of the runs differ in this alone (the same {words} on both sides), so nothing can be said.*"
            )
            continue
        page.bullets(f"{esc(pair['sentence'])} {cost(found['arms'], pair)}{also_differ(facts, pair)}" for pair in pairs)
        shown = sum(pair["shown"] for pair in pairs)
        if len(pairs) == 1:
            page.say(f"This comparison {'shows' if shown else 'does not show'} a difference.")
        else:
            page.say(
                f"Of these {len(pairs)} comparisons, {shown or 'none'} {'shows' if shown < 2 else 'show'} a difference."
            )


def cost(arms: dict[str, Any], pair: dict[str, Any]) -> str:
    a, b = arms[pair["a"]], arms[pair["b"]]
    return (
        f"Time per epoch {number(a['mean_train_seconds_per_epoch'])} s against"
        f" {number(b['mean_train_seconds_per_epoch'])} s, epochs to convergence {span(a['epochs_to_convergence'])}"
        f" against {span(b['epochs_to_convergence'])} ({esc(pair['a'])} first)."
    )


def also_differ(facts: dict[str, Any], pair: dict[str, Any]) -> str:
    """What else sets the two apart and may have made the difference: image size, pretrained weights."""
    a, b = (config_of(facts, pair[side]) for side in "ab")
    found = []
    if a["image_size"] != b["image_size"]:
        found.append(f"in image size ({a['image_size']} against {b['image_size']} px)")
    if (a.get("weights") == "none") != (b.get("weights") == "none"):
        one = pair["a"] if a.get("weights") == "none" else pair["b"]
        found.append(f"in what they began from ({esc(one)} from random weights, the other from pretrained ones)")
    return f" The two also differ {listed(found)}, so the difference is not of one thing alone." if found else ""


def roclm(page: Page, facts: dict[str, Any]) -> None:
    page.heading("RocLM: is the implementation right?")
    page.say(
        "RocLM is a decoder-only transformer: RMSNorm before each block, grouped-query attention with rotary positions"
        " and normalised queries and keys, a SwiGLU MLP, residual connections, and an output head tied to the"
        " embedding."
    )
    verify = facts["verify"]
    if not verify:
        page.say("*The implementation was not checked for this report, so nothing is claimed.*")
        return
    checks = verify["checks"]
    passed = sum(check["passed"] for check in checks)
    page.say(
        f"`roclab lm verify` ran {len(checks)} checks against an independent reference in a process of its own: "
        f"{passed} passed, {len(checks) - passed} failed."
    )
    page.table(
        ["component", "check", "outcome", "largest deviation"],
        "lllr",
        [
            [
                esc(c.get("component", "")), esc(c["name"]),
                "passed" if c["passed"] else f"**failed**: {esc(c.get('hint') or 'no hint')}",
                deviation(c.get("deviation")),
            ]
            for c in checks
        ],
        "The checks of the implementation; deviations are absolute.",
        f"roclab lm verify of {verify.get('file', 'roclm_model.py')}: evaluation/verify.json",
    )  # fmt: skip


def lab(page: Page, facts: dict[str, Any]) -> None:
    page.heading("Tokenizer lab")
    if not facts["lab"]:
        page.say("*No tokenizer lab was given to this report, so nothing is said here.*")
        return
    page.say(
        f"Student ID {esc(facts['lab']['found'].get('student_id', 'unknown'))}; the executed notebook is"
        " Tokenizer_Lab.ipynb."
    )
    names = list(dict.fromkeys(s.get("tokenizer") for s in sentences(facts["lab"]["found"])))
    tool(
        page, facts["lab"], "lab",
        lambda sentence: sentence.get("tokenizer") or ("Together" if sentence.get("topic") else None),
        lambda figure: next((n for n in names if n and Path(figure).stem.endswith(f"-{n}")), "Together"),
    )  # fmt: skip


def study(page: Page, facts: dict[str, Any]) -> None:
    page.heading("The demo: what the model is good and not good at")
    if not facts["study"]:
        page.say("*No study of the demo was given to this report, so nothing is said here.*")
        return
    study = facts["study"]["found"]
    page.table(
        ["kind", "answers", "scored", "passed", "rate %", "95 % interval"],
        "lrrrrr",
        [
            [
                esc(kind), str(row["n"]), str(row["scored"]), str(row["passed"]), percent(row.get("rate"), 0),
                interval(row["ci95"] if row.get("rate") is not None else None, 0),
            ]
            for kind, row in study["kinds"].items()
        ],
        f"{esc(study.get('model', 'The model'))}: answers to a fixed set of questions, scored by rule. "
        "Answers without a rule are kept for reading.",
        f"{facts['study']['folder']}: study.json",
    )  # fmt: skip
    tool(page, facts["study"], "study")


def tool(
    page: Page,
    tool: dict[str, Any],
    prefix: str,
    topic: Callable[[dict[str, Any]], str | None] = lambda sentence: None,
    topic_of_figure: Callable[[str], str | None] = lambda figure: None,
) -> None:
    """The sentences and figures of another tool's folder, by topic: a heading, what is said of it, its figures. What
    has no topic comes first."""
    said = [(topic(sentence), sentence) for sentence in sentences(tool["found"])]
    drawn = [(topic_of_figure(name), name) for name in tool["figures"]]
    captions = CAPTIONS | tool["found"].get("captions", {})
    for title in sorted({t for t, _ in said + drawn}, key=[None, *(t for t, _ in said + drawn)].index):
        if title:
            page.heading(esc(title), 2)
        page.bullets(_sentence(sentence) for t, sentence in said if t == title)
        for name in (name for t, name in drawn if t == title):
            caption = captions.get(name) or Path(name).stem.replace("-", " ").replace("_", " ").capitalize()
            source = f"{tool['folder']}: figures/{name}"
            page.figure(f"figures/{prefix}-{name}", esc(caption.rstrip(".")) + ".", source, tool["figures"][name])


def _sentence(sentence: dict[str, Any]) -> str:
    """A sentence with the strength of its evidence, where the tool states it."""
    strength = sentence.get("evidence")
    return esc(sentence["text"]) + (
        f" *\\[{esc(EVIDENCE.get(strength, strength))}\\]*" if isinstance(strength, str) else ""
    )


def people(page: Page, facts: dict[str, Any]) -> None:
    page.heading("People consulted and AI tools used")
    for title, value, nobody in (
        ("People consulted", facts["settings"]["consulted"], "nobody"),
        ("AI tools used", facts["settings"]["ai_tools"], "none"),
    ):
        if value is None:
            page.say(f"**{title}: not filled in.**")
        elif not value:
            page.say(f"{title}: {nobody}.")
        else:
            page.say(f"{title}:")
            page.bullets(esc(line) for line in value)


def class_tables(page: Page, facts: dict[str, Any]) -> None:
    page.heading("Appendix: every class")
    split, scores = facts["split"], facts["per_class"]
    first, names = next(iter(scores.values())), list(scores)
    tables = -(-len(names) // 4)
    size = -(-len(names) // tables)  # as many columns in each
    for start in range(0, len(names), size):
        part = names[start : start + size]
        page.table(
            ["class", "images", *map(esc, part)],
            "lr" + "c" * len(part),
            [
                [esc(c), str(first[c]["support"]), *(precision_recall_f1(scores[name][c]) for name in part)]
                for c in first
            ],
            "Precision · recall · F1 of each class (%), mean over the"
            f" runs{f', part {start // size + 1} of {tables}' if tables > 1 else ''}. A dash: nothing to measure (a"
            " class that was never called, or has no images).",
            f"results-{split}.json of {refs(r for name in part for r in facts['arms'][name])}",
            even=True,
        )


def confusion(page: Page, facts: dict[str, Any]) -> None:
    page.heading("Appendix: confusion matrices")
    split = facts["split"]
    for i, (name, members) in enumerate(facts["arms"].items(), start=1):
        page.figure(
            f"figures/confusion-{i}.png",
            f"{esc(name)}: images of each true class (row) called each class (column), "
            f"{'added over the seeds' if len(members) > 1 else 'one run'}; the colour is the share of the row.",
            f"{refs(members)}: results-{split}.json",
            width=100 if len(facts["data"]["classes"]) > 12 else 65,
        )


def provenance(page: Page, facts: dict[str, Any]) -> None:
    page.heading("Provenance")
    page.say(
        "No figure was typed by hand. The table names the source of every figure and table, the next one the folders:"
        " the git revision of the code that made each run, and the beginnings of the SHA-256 of its results and"
        " predictions. All hashes in full are in facts.json beside this report."
    )
    sources = list(page.sources)  # those before this section
    page.table(
        ["", "made from"], "ll", [[name, esc(source)] for name, _, source in sources],
        "Where each figure and table comes from.", "this program",
    )  # fmt: skip
    results = f"results-{facts['split']}.json"
    page.table(
        ["", "folder", "git revision", "data", results, "predictions.csv"],
        "llllll",
        [
            [
                run["ref"], esc(run["name"]), esc(revision(run["git"])), run["data_fingerprint"][:8],
                run["files"].get(results, "none")[:8], run["files"].get("predictions.csv", "none")[:8],
            ]
            for run in facts["runs"]
        ],
        "The run folders’ origin; hashes are SHA-256, shortened.",
        "provenance.json and the files themselves",
    )  # fmt: skip
    others = [
        f"{esc(tool['folder'])}/{esc(tool['file'])}: SHA-256 {tool['sha256'][:16]}"
        for tool in (facts["errors"], facts["lab"], facts["study"])
        if tool
    ]
    page.bullets(others)
