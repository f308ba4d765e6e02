"""Facts -> the report's Markdown. Every number comes from the facts; every claim that one thing is better from a paired
test in them. Figures and tables name the run folders (R1, R2 …) and the file they were made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from roclab.report import sections
from roclab.report.page import Page, command_lines, esc, interval, number, percent, refs
from roclab.report.words import (
    all_refs,
    count,
    data_name,
    distinct,
    kind_of,
    listed,
    mean_known,
    span,
    split_word,
    spread,
)
from roclab.vision.evaluate.run_reader import MODELS, STRATEGIES

OPTIMISER = {"adamw": "AdamW", "sgd": "SGD with Nesterov’s momentum of 0.9"}


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
    sections.errors(page, facts)
    sections.discussion(page, facts)
    sections.roclm(page, facts)
    sections.lab(page, facts)
    sections.study(page, facts)
    sections.people(page, facts)
    sections.class_tables(page, facts)
    sections.confusion(page, facts)
    sections.provenance(page, facts)
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


def _summary(page: Page, facts: dict[str, Any]) -> None:
    found, split = facts["comparison"], facts["split"]
    page.heading("Summary")
    finished = [run for run in facts["runs"] if run["finished"]]
    page.say(
        f"{count(len(finished), 'finished run')} of"
        f" {count(len(facts['arms']), 'model and strategy', 'models and strategies')} on {esc(data_name(facts))}"
        f" ({len(facts['data']['classes'])} classes), judged on {next(iter(found['arms'].values()))['n']}"
        f" {split_word(split)} images."
    )
    highest = max(arm["top1_mean"] for arm in found["arms"].values())
    best = [name for name, arm in found["arms"].items() if arm["top1_mean"] == highest]
    arm = found["arms"][best[0]]
    lines = [
        f"The highest mean accuracy is that of {listed([esc(name) for name in best])}: {percent(highest)} % "
        f"(95 % interval {interval(arm['top1_ci95'])} %)."
    ]
    shown = [pair for pair in found["pairs"] if pair["shown"]]
    if found["pairs"]:
        lines.append(
            f"Of {count(len(found['pairs']), 'paired comparison')}, {len(shown)} "
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
                run["ref"], esc(run["name"]), esc(run["label"]), str(run["config"]["seed"]),
                str(run["config"]["image_size"]),
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
        f"{esc(data_name(facts))}: {data['images']} images of {len(data['classes'])} classes"
        + (f" ({esc(species)})." if species else ".")
        + f" The validation images ({', '.join(f'{100 * f:g} %' for f in data['val_fraction'])} of the training part)"
        " are cut from the training part alone, stratified by class, by the run’s seed; files with identical bytes"
        " stay on the same side. The test images are the same for every run."
    )
    page.table(
        ["seed", "train", "val", "test", "fingerprint of images, labels and split (SHA-256)"],
        "rrrrl",
        [
            [str(seed), str(cut["train"]), str(cut["val"]), str(cut["test"]), cut["fingerprint"][:16]]
            for seed, cut in data["cuts"].items()
        ],
        "Images in each split.",
        "split.json of every run",
    )
    notes = []
    if data["near_duplicates"]:
        notes.append(
            f"{count(data['near_duplicates'], 'pair')} of near-duplicates lie across splits,"
            f" {data['near_duplicates_with_test']} of them with the test split (perceptual hash); they were left where"
            " they are."
        )
    if data["skipped"]:
        notes.append(
            f"{count(data['skipped'], 'image or class', 'images or classes')} could not be used and were left out of"
            " everything."
        )
    if data["without_test_images"]:
        notes.append(
            f"The test split has no image of {', '.join(map(esc, data['without_test_images']))}: "
            "nothing is measured there, and the means leave such classes out."
        )
    opened = [run for run in facts["runs"] if run["test_opened"] > 1]
    if facts["split"] == "test":
        notes.append(
            "The test images were opened once for each run, except"
            f" {', '.join(run['ref'] + ' (' + str(run['test_opened']) + ' times)' for run in opened)}."
            if opened
            else (
                "The test images were opened once for each run, after its training had ended; each run keeps the record"
                " (test_opened.json)."
            )
        )
    page.bullets(notes)
    page.heading("Where this differs from the handout, and why", 2)
    page.bullets([
        "The handout resizes every image to 224 × 224 and then draws a random crop of 224. That crop is the whole "
        "picture: nothing is augmented, and every image that is not square is squashed. Here the shorter side is "
        "resized and a part of the image is cropped, as the pretrained weights’ own recipe has it; fine-tuning draws "
        "random crops and mirror images.",
        "The handout selects the best epoch on the test split. The best of many looks at the test images is no "
        "estimate for new images: it is too high, and more so for the model that was looked at more often. Here every "
        "choice (epoch, regularisation) is made on validation images, and the test images are read when training is "
        "over.",
    ])  # fmt: skip


def _models(page: Page, facts: dict[str, Any]) -> None:
    page.heading("Models and training")
    rows = []
    by_ref = {run["ref"]: run for run in facts["runs"]}
    for name, members in facts["arms"].items():
        run = by_ref[members[0]]
        rows.append([
            esc(name), f"{run['parameters'] / 1e6:.1f}" if run["parameters"] else "–", esc(run["weights"]),
            how(run, [by_ref[r] for r in members]),
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
            f"{listed(random)} began from random weights: what {'it reaches' if len(random) == 1 else 'they reach'} "
            "says nothing about the architecture with pretrained weights."
        )


def how(run: dict[str, Any], members: Sequence[dict[str, Any]]) -> str:
    """An arm's training in words, from its configuration."""
    c = run["config"]
    if c["strategy"] == "features":
        parts = [
            "frozen backbone; the head is multinomial logistic regression on its standardised features (L-BFGS)",
            f"{c['image_size']} px",
        ]
        chosen = distinct(f"{m['c']:g}" for m in members if m["c"])
        parts += [f"C = {listed(chosen)}, chosen on validation"] if chosen else []
        parts += [f"{c['views']} views of each image"] if c.get("views", 1) > 1 else []
        parts += ["head trained again on train + val"] if c.get("refit") else []
        return esc("; ".join(parts))
    optimizer = c.get("optimizer", "adamw")  # before there was a choice, it was AdamW
    parts = [
        f"all parameters learn ({OPTIMISER.get(optimizer, optimizer)}, linear warm-up, half a cosine down)",
        f"{c['image_size']} px",
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
        f"{page.next_figure} shows the losses of every run, epoch by epoch; the table says when each converged and what"
        " it cost."
    )
    page.figure(
        "figures/loss.png",
        "Training and validation loss of all runs. The training loss of a fine-tuned network is measured under "
        "augmentation while it learns; where its validation line begins at epoch 0, it began from a trained head. A "
        "cross marks a run that was cut short.",
        f"{all_refs(facts['runs'])}: metrics.jsonl",
    )
    rows = []
    for name, arm in facts["comparison"]["arms"].items():
        done = [run["epochs_done"] for run in facts["runs"] if run["ref"] in arm["runs"]]
        rows.append([
            esc(name), span(done), span(arm["epochs_to_convergence"]), number(arm["mean_train_seconds_per_epoch"]),
            number(arm["images_per_second"], 1), f"{arm['peak_memory_mb']:.0f}", refs(arm["runs"]),
        ])  # fmt: skip
    page.table(
        ["model and strategy", "epochs", "to convergence", "s per epoch", "images/s", "peak MB", "runs"],
        "lrrrrrl",
        rows,
        "Convergence and cost. To convergence: the first epoch whose validation accuracy is within half a point of the"
        " run’s best. Seconds are a mean over the runs, validation not counted; with a frozen backbone they are"
        " extraction and training of the head, divided by its steps.",
        f"results-{facts['split']}.json, metrics.jsonl",
    )
    for run in facts["runs"]:
        if not run["finished"]:
            last = f" Its log ends with: “{esc(run['log'])}”." if run["log"] else ""
            page.say(
                f"{run['ref']} ({esc(run['name'])}) was cut after {count(run['epochs_done'], 'epoch')} of "
                f"{run['config'].get('epochs')}: its curve is shown, its accuracy is not.{last}"
            )


def _accuracy(page: Page, facts: dict[str, Any]) -> None:
    found, split = facts["comparison"], facts["split"]
    arms = found["arms"]
    page.heading("Accuracy")
    models = distinct(kind_of(facts, name)[0] for name in arms)
    strategies = distinct(kind_of(facts, name)[1] for name in arms)
    rows = []
    for model in models:
        cells = []
        for strategy in strategies:
            here = [arms[name] for name in arms if kind_of(facts, name) == (model, strategy)]
            best = max(here, key=lambda arm: arm["top1_mean"], default=None)
            cells.append(f"{percent(best['top1_mean'])} ({interval(best['top1_ci95'])})" if best else "not run")
        rows.append([esc(MODELS.get(model, model)), *cells])
    page.table(
        ["model", *(esc(STRATEGIES.get(s, s)) for s in strategies)],
        "l" + "r" * len(strategies),
        rows,
        f"Best top-1 accuracy of each model under each strategy on {split_word(split)} images (%), mean over the seeds,"
        " with its 95 % interval (Wilson).",
        f"results-{split}.json of {all_refs(facts['runs'], finished=True)}",
    )
    page.figure(
        "figures/accuracy.png",
        f"Top-1 accuracy on {split_word(split)} images: dots are runs, the bar is their mean, the line its "
        "95 % interval.",
        f"{all_refs(facts['runs'], finished=True)}: results-{split}.json",
    )
    page.table(
        ["model and strategy", "top-1 %", "per class %", "macro F1", "ECE", "best val %", "runs"],
        "lrrrrrl",
        [
            [
                esc(name), spread(arm, "top1"), spread(arm, "mean_per_class"), number(arm["macro_f1_mean"], 3),
                number(arm["ece_mean"], 3), percent(mean_known(arm["best_val"])), refs(arm["runs"]),
            ]
            for name, arm in arms.items()
        ],
        "Every model and strategy: mean ± standard deviation over the seeds. Per class: mean of the classes’ recalls. "
        "ECE: calibration error, 15 bins. Best val: highest validation accuracy of an epoch, on which the choice "
        "was made.",
        f"results-{split}.json, metrics.jsonl",
    )  # fmt: skip
    if found["pairs"]:
        page.heading("Which differences are shown", 2)
        page.say(
            "Between every two: McNemar’s exact test on the same images for each seed, and the paired bootstrap over"
            " images of the score averaged over the seeds (difference in points, 95 % interval in brackets). One is"
            " called better only if the interval leaves out zero and the median p is below 0.05 after Holm’s correction"
            " over all comparisons."
        )
        page.bullets(esc(pair["sentence"]) for pair in found["pairs"])


def _classes(page: Page, facts: dict[str, Any]) -> None:
    split, scores = facts["split"], facts["per_class"]
    page.heading("Classes")
    page.figure(
        "figures/f1.png",
        f"F1 of each class on {split_word(split)} images, mean over the runs of each model and strategy; hardest "
        "classes above.",
        f"{all_refs(facts['runs'], finished=True)}: results-{split}.json",
    )
    first = next(iter(scores.values()))
    few = min((row["support"] for row in first.values() if row["support"]), default=0)
    if few < 10:
        page.say(
            f"The smallest class that has {split_word(split)} images has {few}: a single image moves its recall by"
            f" {100 / max(few, 1):.0f} points, so single classes are not ranked by these figures alone."
        )
    page.say(
        f"Figure {page.figures} shows F1 class by class. Precision, recall and F1 of every class and the confusion"
        " matrices stand in the appendices."
    )
