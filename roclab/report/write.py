"""Facts -> the report's Markdown. Every number comes from the facts; every claim that one thing is better from a paired
test in them. Figures and tables name the run folders (R1, R2 …) and the file they were made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from roclab.report.facts import sentences
from roclab.report.gather import MODELS, STRATEGIES
from roclab.report.page import Page, command_lines, esc, interval, number, percent, refs

OPTIMISER = {
    "features": "frozen backbone; the head is multinomial logistic regression on its standardised features (L-BFGS)",
    "finetune": "all parameters learn (AdamW, linear warm-up, half a cosine down)",
}


def write(facts: dict[str, Any], commands: Sequence[Sequence[str]]) -> str:
    """The whole report as pandoc's Markdown, its metadata first. Figures are expected under figures/."""
    page = Page()
    _summary(page, facts)
    _setup(page, facts, commands)
    _data(page, facts)
    _models(page, facts)
    _curves(page, facts)
    _accuracy(page, facts)
    _classes(page, facts)
    _errors(page, facts)
    _discussion(page, facts)
    _roclm(page, facts)
    _lab(page, facts)
    _study(page, facts)
    _people(page, facts)
    _class_tables(page, facts)
    _confusion(page, facts)
    _provenance(page, facts)
    return metadata(facts) + page.text()


def metadata(facts: dict[str, Any]) -> str:
    """Pandoc's YAML block. A JSON string is a YAML string, so nothing a name holds can end it."""
    settings = facts["settings"]
    author = esc(settings["author"]) if settings["author"] else "(author not filled in)"
    if settings["student_id"]:
        author += f" (student ID {esc(settings['student_id'])})"
    last = max((run["time"] or "" for run in facts["runs"]), default="")
    day = f"{datetime.fromisoformat(last):%d %B %Y}".lstrip("0") if last else ""
    values = {
        "title": esc(settings["title"] or f"Transfer learning on {data_name(facts)}, and RocLM"),
        "author": author,
        "date": esc(settings["date"] or (f"Results as of {day}" if day else "")),
        "subtitle": esc(settings["course"]) if settings["course"] else None,
        "lang": "en-GB",
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value]
    return "\n".join(["---", *lines, "---", "", ""])


def data_name(facts: dict[str, Any]) -> str:
    return {"pets": "Oxford-IIIT Pet", "elpv": "ELPV solar cells"}.get(facts["data"]["name"], facts["data"]["name"])


def _summary(page: Page, facts: dict[str, Any]) -> None:
    found, split = facts["comparison"], facts["split"]
    page.heading("Summary")
    finished = [run for run in facts["runs"] if run["finished"]]
    page.say(
        f"{_count(len(finished), 'finished run')} of {_count(len(facts['arms']), 'model and strategy', 'models and strategies')} "
        f"on {esc(data_name(facts))} ({len(facts['data']['classes'])} classes), judged on "
        f"{next(iter(found['arms'].values()))['n']} {_split(split)} photos."
    )
    best = max(found["arms"], key=lambda name: found["arms"][name]["top1_mean"])
    arm = found["arms"][best]
    lines = [
        f"The highest mean accuracy is that of {esc(best)}: {percent(arm['top1_mean'])} % "
        f"(95 % interval {interval(arm['top1_ci95'])} %)."
    ]
    shown = [pair for pair in found["pairs"] if pair["shown"]]
    if found["pairs"]:
        lines.append(
            f"Of {_count(len(found['pairs']), 'paired comparison')}, {len(shown)} "
            f"{'shows' if len(shown) == 1 else 'show'} a difference that holds after Holm’s correction."
        )
    if verify := facts["verify"]:
        checks = verify["checks"]
        lines.append(f"RocLM passes {sum(c['passed'] for c in checks)} of {len(checks)} correctness checks.")
    page.bullets(lines)


def _setup(page: Page, facts: dict[str, Any], commands: Sequence[Sequence[str]]) -> None:
    page.heading("Setup")
    page.say(
        "A run is a folder with its configuration, its provenance (versions, git revision, hashes of data and weights, "
        "machine, seed), its metrics and its predictions. Every figure and table below was made from such folders by "
        "a program, names them by the numbers of this table, and is listed with its files under Provenance."
    )
    page.table(
        ["", "folder", "model and strategy", "seed", "px", "epochs", "state"],
        "lllrrrl",
        [
            [
                run["ref"], esc(run["name"]), esc(run["label"]), str(run["config"]["seed"]), str(run["config"]["image_size"]),
                str(run["epochs_done"]), "finished" if run["finished"] else "**cut short**",
            ]
            for run in facts["runs"]
        ],
        "The run folders. Epochs are those done; with a frozen backbone an epoch is a step of L-BFGS.",
        "every run: config.json, metrics.jsonl, training.json",
    )  # fmt: skip
    machines = distinct(
        f"{m.get('cpu', 'unknown')}, {m.get('cores')} cores, threads used: {m.get('threads')}, "
        + (", ".join(m.get("gpus") or []) or "no GPU")
        for m in (run["machine"] for run in facts["runs"])
    )
    versions = distinct(
        ", ".join(f"{name} {version}" for name, version in run["versions"].items()) for run in facts["runs"]
    )
    lines = [f"Machine: {esc(text)}." for text in machines] + [f"Software: {esc(text)}." for text in versions]
    if len(machines) > 1:
        lines.append("The runs were made on different machines or thread counts: their times do not compare.")
    page.bullets(lines)
    if commands:
        page.say("The commands that made the runs:")
        page.code(line for command in commands for line in command_lines(command))


def _data(page: Page, facts: dict[str, Any]) -> None:
    data = facts["data"]
    page.heading("Data and split")
    species = ", ".join(f"{n} {kind}s" for kind, n in data["species"].items())
    page.say(
        f"{esc(data_name(facts))}: {data['photos']} photos of {len(data['classes'])} classes"
        + (f" ({esc(species)})." if species else ".")
        + f" The validation photos ({', '.join(f'{100 * f:g} %' for f in data['val_fraction'])} of the training part) are "
        "cut from the training part alone, stratified by class, by the run’s seed; files with identical bytes stay on "
        "the same side. The test photos are the same for every run."
    )
    page.table(
        ["seed", "train", "val", "test", "fingerprint of photos, labels and split (SHA-256)"],
        "rrrrl",
        [
            [str(seed), str(cut["train"]), str(cut["val"]), str(cut["test"]), cut["fingerprint"][:16]]
            for seed, cut in data["cuts"].items()
        ],
        "Photos in each split.",
        "split.json of every run",
    )
    notes = []
    if data["near_duplicates"]:
        notes.append(
            f"{_count(data['near_duplicates'], 'pair')} of near-duplicates lie across splits, "
            f"{data['near_duplicates_with_test']} of them with the test split (perceptual hash); they were left where they are."
        )
    if data["skipped"]:
        notes.append(
            f"{_count(data['skipped'], 'photo or class', 'photos or classes')} could not be used and were left out of everything."
        )
    if data["without_test_photos"]:
        notes.append(
            f"The test split has no photo of {', '.join(map(esc, data['without_test_photos']))}: "
            "nothing is measured there, and the means leave such classes out."
        )
    opened = [run for run in facts["runs"] if run["test_opened"] > 1]
    if facts["split"] == "test":
        notes.append(
            f"The test photos were opened once for each run, except {', '.join(run['ref'] + ' (' + str(run['test_opened']) + ' times)' for run in opened)}."
            if opened
            else "The test photos were opened once for each run, after its training had ended; each run keeps the record (test_opened.json)."
        )
    page.bullets(notes)
    page.heading("Where this differs from the handout, and why", 2)
    page.bullets([
        "The handout resizes every photo to 224 × 224 and then draws a random crop of 224. That crop is the whole picture: "
        "nothing is augmented, and every photo that is not square is squashed. Here the shorter side is resized and a "
        "part of the photo is cropped, as the pretrained weights’ own recipe has it; fine-tuning draws random crops and "
        "mirror images.",
        "The handout selects the best epoch on the test split. The best of many looks at the test photos is no estimate "
        "for new photos: it is too high, and more so for the model that was looked at more often. Here every choice "
        "(epoch, regularisation) is made on validation photos, and the test photos are read when training is over.",
    ])  # fmt: skip


def _models(page: Page, facts: dict[str, Any]) -> None:
    page.heading("Models and training")
    rows = []
    by_ref = {run["ref"]: run for run in facts["runs"]}
    for name, members in facts["arms"].items():
        run = by_ref[members[0]]
        rows.append([
            esc(name), f"{run['parameters'] / 1e6:.1f}" if run["parameters"] else "–", esc(run["weights"]), how(run, [by_ref[r] for r in members])
        ])  # fmt: skip
    page.table(
        ["model and strategy", "M weights", "initial weights", "how it learnt"],
        "lrll",
        rows,
        "The models, what they began from (name and beginning of the hash) and how they were trained. "
        "Weights are counted in millions, the new head included, BatchNorm’s statistics not.",
        "config.json, provenance.json, training.json and the checkpoint’s header",
    )
    random = [
        esc(name) for name, members in facts["arms"].items() if by_ref[members[0]]["config"].get("weights") == "none"
    ]
    if random:
        page.say(
            f"{_and(random)} began from random weights: what {'it reaches' if len(random) == 1 else 'they reach'} says nothing "
            "about the architecture with pretrained weights."
        )


def how(run: dict[str, Any], members: Sequence[dict[str, Any]]) -> str:
    """An arm's training in words, from its configuration."""
    c = run["config"]
    parts = [OPTIMISER.get(c["strategy"], esc(c["strategy"])), f"{c['image_size']} px"]
    if c["strategy"] == "features":
        chosen = distinct(f"{m['c']:g}" for m in members if m["c"])
        parts += [f"C = {_and(chosen)}, chosen on validation"] if chosen else []
        parts += [f"{c['views']} views of each photo"] if c.get("views", 1) > 1 else []
        parts += ["head trained again on train + val"] if c.get("refit") else []
        return esc("; ".join(parts))
    parts += [
        f"learning rate {c['lr']:g} for the head, × {c['layer_decay']:g} for each earlier group of layers",
        f"weight decay {c['weight_decay']:g}",
        f"{c['epochs']} epochs, batches of {c['batch_size']}"
        + (f" × {c['accumulate']}" if c.get("accumulate", 1) > 1 else ""),
    ]
    wishes = (
        ("label_smoothing", "label smoothing"),
        ("mixup", "mixup"),
        ("cutmix", "CutMix"),
        ("ema", "average of weights, decay"),
    )
    parts += [f"{words} {c[key]:g}" for key, words in wishes if c.get(key)]
    parts += ["starts from the trained head"] if c.get("lp_ft") else []
    parts += (
        [f"BatchNorm {'at rest' if c.get('batch_norm') == 'frozen' else 'with batch statistics'}"]
        if "resnet" in c["model"] or "efficientnet" in c["model"]
        else []
    )
    parts += ["early epochs at lower resolution"] if c.get("progressive") else []
    parts += [f"early layers rest for {100 * c['gradual']:.0f} % of the epochs"] if c.get("gradual") else []
    return esc("; ".join(parts))


def _curves(page: Page, facts: dict[str, Any]) -> None:
    page.heading("Training curves and convergence")
    page.say(
        f"{page.next_figure} shows the losses of every run, epoch by epoch; the table says when each converged and what it cost."
    )
    page.figure(
        "figures/loss.png",
        "Training and validation loss of all runs. The training loss of a fine-tuned network is measured under "
        "augmentation while it learns; a cross marks a run that was cut short.",
        f"{_all(facts['runs'])}: metrics.jsonl",
    )
    rows = []
    for name, arm in facts["comparison"]["arms"].items():
        done = [run["epochs_done"] for run in facts["runs"] if run["ref"] in arm["runs"]]
        rows.append([
            esc(name), _range(done), _range(arm["epochs_to_convergence"]), number(arm["mean_train_seconds_per_epoch"]),
            number(arm["images_per_second"], 1), f"{arm['peak_memory_mb']:.0f}", refs(arm["runs"]),
        ])  # fmt: skip
    page.table(
        ["model and strategy", "epochs", "to convergence", "s per epoch", "photos/s", "peak MB", "runs"],
        "lrrrrrl",
        rows,
        "Convergence and cost. To convergence: the first epoch whose validation accuracy is within half a point of the "
        "run’s best. Seconds are a mean over the runs, validation not counted; with a frozen backbone they are extraction "
        "and training of the head, divided by its steps.",
        f"results-{facts['split']}.json, metrics.jsonl",
    )
    for run in facts["runs"]:
        if not run["finished"]:
            last = f" Its log ends with: “{esc(run['log'])}”." if run["log"] else ""
            page.say(
                f"{run['ref']} ({esc(run['name'])}) was cut after {_count(run['epochs_done'], 'epoch')} of "
                f"{run['config'].get('epochs')}: its curve is shown, its accuracy is not.{last}"
            )


def _accuracy(page: Page, facts: dict[str, Any]) -> None:
    found, split = facts["comparison"], facts["split"]
    arms = found["arms"]
    page.heading("Accuracy")
    models = distinct(_kind(facts, name)[0] for name in arms)
    strategies = distinct(_kind(facts, name)[1] for name in arms)
    rows = []
    for model in models:
        cells = []
        for strategy in strategies:
            here = [arms[name] for name in arms if _kind(facts, name) == (model, strategy)]
            best = max(here, key=lambda arm: arm["top1_mean"], default=None)
            cells.append(f"{percent(best['top1_mean'])} ({interval(best['top1_ci95'])})" if best else "not run")
        rows.append([esc(MODELS.get(model, model)), *cells])
    page.table(
        ["model", *(esc(STRATEGIES.get(s, s)) for s in strategies)],
        "l" + "r" * len(strategies),
        rows,
        f"Best top-1 accuracy of each model under each strategy on {_split(split)} photos (%), mean over the seeds, with its "
        "95 % interval (Wilson).",
        f"results-{split}.json of {_all(facts['runs'], finished=True)}",
    )
    page.figure(
        "figures/accuracy.png",
        f"Top-1 accuracy on {_split(split)} photos: dots are runs, the bar is their mean, the line its 95 % interval.",
        f"{_all(facts['runs'], finished=True)}: results-{split}.json",
    )
    page.table(
        ["model and strategy", "top-1 %", "per class %", "macro F1", "ECE", "best val %", "runs"],
        "lrrrrrl",
        [
            [
                esc(name), _spread(arm, "top1"), _spread(arm, "mean_per_class"), number(arm["macro_f1_mean"], 3),
                number(arm["ece_mean"], 3), percent(_mean_known(arm["best_val"])), refs(arm["runs"]),
            ]
            for name, arm in arms.items()
        ],
        "Every model and strategy: mean ± standard deviation over the seeds. Per class: mean of the classes’ recalls. "
        "ECE: calibration error, 15 bins. Best val: highest validation accuracy of an epoch, on which the choice was made.",
        f"results-{split}.json, metrics.jsonl",
    )  # fmt: skip
    if found["pairs"]:
        page.heading("Which differences are shown", 2)
        page.say(
            "Between every two: McNemar’s exact test on the same photos for each seed, and the paired bootstrap over photos "
            "of the score averaged over the seeds (difference in points, 95 % interval in brackets). One is called better only "
            "if the interval leaves out zero and the median p is below 0.05 after Holm’s correction over all comparisons."
        )
        page.bullets(esc(pair["sentence"]) for pair in found["pairs"])


def _classes(page: Page, facts: dict[str, Any]) -> None:
    split, scores = facts["split"], facts["per_class"]
    page.heading("Classes")
    page.figure(
        "figures/f1.png",
        f"F1 of each class on {_split(split)} photos, mean over the runs of each model and strategy; hardest classes above.",
        f"{_all(facts['runs'], finished=True)}: results-{split}.json",
    )
    first = next(iter(scores.values()))
    few = min((row["support"] for row in first.values() if row["support"]), default=0)
    if few < 10:
        page.say(
            f"The smallest class that has {_split(split)} photos has {few}: a single photo moves its recall by {100 / max(few, 1):.0f} points, "
            "so single classes are not ranked by these figures alone."
        )
    page.say(
        f"Figure {page.figures} shows F1 class by class. Precision, recall and F1 of every class and the confusion matrices stand in the appendices."
    )


def _class_tables(page: Page, facts: dict[str, Any]) -> None:
    page.heading("Appendix: every class")
    split, scores = facts["split"], facts["per_class"]
    first, names = next(iter(scores.values())), list(scores)
    tables = -(-len(names) // 4)
    size = -(-len(names) // tables)  # as many columns in each
    for start in range(0, len(names), size):
        part = names[start : start + size]
        page.table(
            ["class", "photos", *map(esc, part)],
            "lr" + "c" * len(part),
            [[esc(c), str(first[c]["support"]), *(_prf(scores[name][c]) for name in part)] for c in first],
            f"Precision · recall · F1 of each class (%), mean over the runs{f', part {start // size + 1} of {tables}' if tables > 1 else ''}. "
            "A dash: nothing to measure (a class that was never called, or has no photos).",
            f"results-{split}.json of {refs(r for name in part for r in facts['arms'][name])}",
            even=True,
        )


def _confusion(page: Page, facts: dict[str, Any]) -> None:
    page.heading("Appendix: confusion matrices")
    # here each picture stays where it stands
    page.raw(latex="\\floatplacement{figure}{H}", typst="#show figure.where(kind: image): set figure(placement: none)")
    split = facts["split"]
    for i, (name, members) in enumerate(facts["arms"].items(), start=1):
        page.figure(
            f"figures/confusion-{i}.png",
            f"{esc(name)}: photos of each true class (row) called each class (column), "
            f"{'added over the seeds' if len(members) > 1 else 'one run'}; the colour is the share of the row.",
            f"{refs(members)}: results-{split}.json",
            width=65,
        )


def _errors(page: Page, facts: dict[str, Any]) -> None:
    page.heading("Error analysis")
    if not facts["errors"]:
        page.say("*No error analysis was given to this report, so nothing is said here.*")
        return
    page.say(
        "Each sentence follows from a computed fact; in brackets, how strong the evidence is. The page with the photos is beside this report (errors/index.html)."
    )
    _tool(page, facts, "errors", "errors", evidence=True)


def _discussion(page: Page, facts: dict[str, Any]) -> None:
    found = facts["comparison"]
    page.heading("Architectures and strategies")
    page.say(
        "Which is better is said only where the paired tests show it; costs are measured. Nothing here goes beyond these "
        "photos, weights and settings."
    )
    for title, same, words in (("Architectures", 1, "strategy"), ("Strategies", 0, "model")):
        page.heading(title, 2)
        pairs = [
            pair for pair in found["pairs"]
            if _kind(facts, pair["a"])[same] == _kind(facts, pair["b"])[same] and _kind(facts, pair["a"]) != _kind(facts, pair["b"])
        ]  # fmt: skip
        if not pairs:
            page.say(
                f"*No two of the runs differ in this alone (the same {words} on both sides), so nothing can be said.*"
            )
            continue
        page.bullets(
            f"{esc(pair['sentence'])} {_cost(found['arms'], pair)}{_also_differ(facts, pair)}" for pair in pairs
        )
        shown = sum(pair["shown"] for pair in pairs)
        if len(pairs) == 1:
            page.say(f"This comparison {'shows' if shown else 'does not show'} a difference.")
        else:
            page.say(
                f"Of these {len(pairs)} comparisons, {shown or 'none'} {'shows' if shown < 2 else 'show'} a difference."
            )


def _cost(arms: dict[str, Any], pair: dict[str, Any]) -> str:
    a, b = arms[pair["a"]], arms[pair["b"]]
    return (
        f"Time per epoch {number(a['mean_train_seconds_per_epoch'])} s against {number(b['mean_train_seconds_per_epoch'])} s, epochs to "
        f"convergence {_range(a['epochs_to_convergence'])} against {_range(b['epochs_to_convergence'])} "
        f"({esc(pair['a'])} first)."
    )


def _also_differ(facts: dict[str, Any], pair: dict[str, Any]) -> str:
    """What else sets the two apart and may have made the difference: image size, pretrained weights."""
    a, b = (_config(facts, pair[side]) for side in "ab")
    found = []
    if a["image_size"] != b["image_size"]:
        found.append(f"in image size ({a['image_size']} against {b['image_size']} px)")
    if (a.get("weights") == "none") != (b.get("weights") == "none"):
        one = pair["a"] if a.get("weights") == "none" else pair["b"]
        found.append(f"in what they began from ({esc(one)} from random weights, the other from pretrained ones)")
    return f" The two also differ {_and(found)}, so the difference is not of one thing alone." if found else ""


def _roclm(page: Page, facts: dict[str, Any]) -> None:
    page.heading("RocLM: is the implementation right?")
    page.say(
        "RocLM is a decoder-only transformer: RMSNorm before each block, grouped-query attention with rotary positions and "
        "normalised queries and keys, a SwiGLU MLP, residual connections, and an output head tied to the embedding."
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
                "passed" if c["passed"] else f"**failed**: {esc(c.get('hint') or 'no hint')}", _deviation(c.get("deviation")),
            ]
            for c in checks
        ],
        "The checks of the implementation; deviations are absolute.",
        f"roclab lm verify of {verify.get('file', 'roclm_model.py')}: evaluation/verify.json",
    )  # fmt: skip


def _lab(page: Page, facts: dict[str, Any]) -> None:
    page.heading("Tokenizer lab")
    if not facts["lab"]:
        page.say("*No tokenizer lab was given to this report, so nothing is said here.*")
        return
    page.say(
        f"Student ID {esc(facts['lab']['found'].get('student_id', 'unknown'))}; the executed notebook is Tokenizer_Lab.ipynb."
    )
    _tool(page, facts, "lab", "lab")


def _study(page: Page, facts: dict[str, Any]) -> None:
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
        f"{esc(study.get('model', 'The model'))}: answers to a fixed set of questions, scored by rule. Answers without a rule are kept for reading.",
        f"{facts['study']['folder']}: study.json",
    )  # fmt: skip
    _tool(page, facts, "study", "study")


def _tool(page: Page, facts: dict[str, Any], key: str, prefix: str, evidence: bool = False) -> None:
    """The sentences and figures of another tool's folder."""
    tool = facts[key]
    lines = []
    for sentence in sentences(tool["found"]):
        strength = sentence.get("evidence") if evidence else None
        lines.append(esc(sentence["text"]) + (f" *\\[{esc(strength)}\\]*" if isinstance(strength, str) else ""))
    page.bullets(lines)
    captions = tool["found"].get("captions", {})
    for name in tool["figures"]:
        caption = captions.get(name) or Path(name).stem.replace("-", " ").replace("_", " ").capitalize()
        page.figure(f"figures/{prefix}-{name}", esc(caption.rstrip(".")) + ".", f"{tool['folder']}: figures/{name}")


def _people(page: Page, facts: dict[str, Any]) -> None:
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


def _provenance(page: Page, facts: dict[str, Any]) -> None:
    page.heading("Provenance")
    page.say(
        "No figure was typed by hand. The table names the source of every figure and table, the next one the folders: the git "
        "revision of the code that made each run, and the beginnings of the SHA-256 of its results and predictions. All hashes in "
        "full are in facts.json beside this report."
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
                run["ref"], esc(run["name"]), esc(_revision(run["git"])), run["data_fingerprint"][:8],
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


def _revision(git: str | None) -> str:
    if not git:
        return "not in a checkout"
    return git[:12] + (" (edited)" if git.endswith("-dirty") else "")


def _kind(facts: dict[str, Any], arm: str) -> tuple[str, str]:
    """Model and strategy of an arm."""
    config = _config(facts, arm)
    return config["model"], config["strategy"]


def _config(facts: dict[str, Any], arm: str) -> dict[str, Any]:
    return next(run["config"] for run in facts["runs"] if run["ref"] == facts["arms"][arm][0])


def distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _and(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


def _split(split: str) -> str:
    return "validation" if split == "val" else split


def _all(runs: Sequence[dict[str, Any]], finished: bool = False) -> str:
    return refs(run["ref"] for run in runs if run["finished"] or not finished)


def _range(values: Sequence[int | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return "–" if not known else str(known[0]) if len(known) == 1 else f"{known[0]}–{known[-1]}"


def _spread(arm: dict[str, Any], key: str) -> str:
    mean = percent(arm[f"{key}_mean"])
    return f"{mean} ± {percent(arm[f'{key}_std'])}" if len(arm["runs"]) > 1 else mean


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _prf(row: dict[str, Any]) -> str:
    return " · ".join(percent(row[key], 0) for key in ("precision", "recall", "f1"))


def _deviation(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, (int, float)) else "–"
