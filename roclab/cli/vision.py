"""`roclab vision …`: transfer learning for images."""

from __future__ import annotations

import logging
from pathlib import Path

import typer

from roclab.cli.options import options_from
from roclab.cli.output import show
from roclab.core.exceptions import RocLabError
from roclab.core.training.memory import keep_freed_memory
from roclab.vision.config import TrainConfig, not_of

logger = logging.getLogger(__name__)
app = typer.Typer(help="Transfer learning for images.", no_args_is_help=True)


@app.callback()
def commands() -> None:
    """Transfer learning for images."""
    keep_freed_memory()


@app.command()
@options_from(TrainConfig, "config", without=("warmup", "clip"))
def train(
    context: typer.Context,
    config: TrainConfig,
    out: Path | None = typer.Option(None, help="Folder of the run."),
    resume: Path | None = typer.Option(None, help="Go on with the interrupted run in this folder."),
) -> None:
    """Train one model on one split.

    Example: roclab vision train --data elpv --model efficientnet_lite0 --strategy features --out runs/elpv
    """
    from roclab.core.training.distributed import leave
    from roclab.vision.train.train import resume as resume_run
    from roclab.vision.train.train import train as train_run

    if (out is None) == (resume is None):
        raise RocLabError("give the new run's folder with --out RUN, or the interrupted one with --resume RUN")
    try:
        source = context.get_parameter_source  # of an enumeration that typer does not export
        given = {n: v for n, v in vars(config).items() if getattr(source(n), "name", "") == "COMMANDLINE"}
        if resume is not None:
            resume_run(resume, **given)
        elif out is not None:
            if names := not_of(config.strategy, given):
                logger.warning(f"not used with --strategy {config.strategy}: {', '.join(names)}")
            train_run(config, out)
    finally:
        leave()


@app.command()
def evaluate(
    run: Path = typer.Argument(..., help="Folder of a finished run."),
    split: str | None = typer.Option(None, help="val (if not given) or test. Opening test is recorded in the run."),
    data: str | None = typer.Option(None, help="Other labelled images, as in train: all of them are evaluated."),
    data_root: str | None = typer.Option(None, help="Where the images are now, if they have moved."),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="--data: leave unreadable images out."),
    device: str | None = typer.Option(None, help="auto, cpu, cuda, …; the run's own, if it is here and none is given."),
    tta: bool = typer.Option(False, "--tta", help="Average each image with its mirror image; takes twice as long."),
    as_json: bool = typer.Option(False, "--json", help="Print everything as JSON."),
) -> None:
    """Evaluate a run: accuracy with intervals, calibration, scores of each class, confusion matrix.

    Example: roclab vision evaluate runs/elpv --split test --json
    """
    from roclab.report.kit import render
    from roclab.vision.evaluate.evaluate import evaluate as evaluate_run
    from roclab.vision.evaluate.evaluate import evaluate_on
    from roclab.vision.evaluate.figures import run_figure
    from roclab.vision.evaluate.run_reader import VisionRun

    if skip_bad and data is None:
        raise RocLabError("--skip-bad is for --data: the run's own images were chosen when it was trained")
    if split and data:
        raise RocLabError("--split is of the run's own images, --data names others: leave one of them out")
    opened, figure = VisionRun.open(run), None
    if data is None:
        split = split or "val"
        found = evaluate_run(opened, split, data_root=data_root, device=device, tta=tta)
        figure = None if tta else run_figure(opened, split)
    else:
        found = evaluate_on(opened, data, data_root, skip_bad, device, tta)
    show(found, as_json, render("evaluation.txt", found=found, figure=figure))


@app.command()
@options_from(
    TrainConfig,
    "base",
    only=(
        *("data", "data_root", "mirror", "skip_bad", "per_class", "class_weights"),
        *("epochs", "budget", "image_size", "lp_ft", "amp"),
    ),
)
def compare(
    base: TrainConfig,
    models: str = typer.Option("resnet50,swin_t", help="Models, with commas between."),
    strategies: str = typer.Option("features,finetune", help="Strategies, with commas between."),
    seeds: int = typer.Option(3, min=1, help="How many seeds, from 0; or from --first-seed."),
    first_seed: int = typer.Option(0, min=0, help="The first seed."),
    weights: str = typer.Option("default", help="As in train; or one for each model: resnet50=FILE,swin_t=none."),
    engine: str = typer.Option("local", help="local, or ray: the runs are tasks of a Ray cluster."),
    out: Path = typer.Option(..., help="Folder of the comparison; the runs are folders inside."),
    as_json: bool = typer.Option(False, "--json", help="Print comparison.json."),
) -> None:
    """Train every model under every strategy, and say which is better, by how much, and how sure that is.

    Example: roclab vision compare --models resnet50,swin_t --seeds 3 --data pets --data-root data --out runs/pets
    """
    from dataclasses import replace

    from roclab.core.files import atomic_write
    from roclab.report.kit import plain, render
    from roclab.vision.compare import compare as compare_runs
    from roclab.vision.compare import own_weights

    names = [name.strip() for name in models.split(",") if name.strip()]
    shared, own = own_weights(weights, names)
    base = replace(base, weights=shared)
    wanted = range(first_seed, first_seed + seeds)
    found = compare_runs(base, names, [s.strip() for s in strategies.split(",") if s.strip()], wanted, out, own, engine)
    page = render("comparison.md", found=found)
    atomic_write(out / "comparison.md", page)
    show(found, as_json, f"{plain(page)}\nfigures in {out / 'figures'}")


@app.command()
def predict(
    run: Path = typer.Argument(..., help="Folder of a finished run, or of an exported model."),
    images: list[Path] = typer.Argument(..., help="Images, or folders of images."),
    top: int = typer.Option(5, min=1, help="How many classes to name."),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave unreadable images out, and log them."),
    device: str | None = typer.Option(None, help="auto, cpu, cuda, …; the run's own, if it is here and none is given."),
    tta: bool = typer.Option(False, "--tta", help="Average each image with its mirror image; takes twice as long."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON list."),
    engine: str = typer.Option("local", help="local, or ray: spread the images over a Ray cluster."),
) -> None:
    """Predict the classes of images.

    Example: roclab vision predict runs/elpv cell.png --top 2
    """
    from roclab.vision.evaluate.evaluate import predict as predict_images

    found = predict_images(run, images, top, engine, skip_bad, device, tta)
    named = ((row["path"], (f"{p['class']} {p['probability']:.3f}" for p in row["predictions"])) for row in found)
    show(found, as_json, "\n".join(f"{path}: {', '.join(classes)}" for path, classes in named))


@app.command()
def export(
    run: Path = typer.Argument(..., help="Folder of a finished run."),
    to: str = typer.Option("onnx", help="onnx, torchscript or openvino."),
    out: Path = typer.Option(..., help="Folder of the model and its card, new or empty."),
    data_root: str | None = typer.Option(None, help="Where the run's images are now, if they have moved."),
    as_json: bool = typer.Option(False, "--json", help="Print what was compared as JSON."),
) -> None:
    """Write a run's network for use without RocLab: an image of any size goes in, class probabilities come out.

    Example: roclab vision export runs/elpv --to onnx --out cells
    """
    from roclab.vision.evaluate.export import export as export_run
    from roclab.vision.evaluate.run_reader import VisionRun

    found = export_run(VisionRun.open(run), to, out, data_root)
    words = f"{found['images']} validation images: probabilities within {found['largest_difference']:.1g} of the run's"
    show(found, as_json, f"{out / found['file']}\n{words}\nmodel card: {out / 'README.md'}")


@app.command()
def embed(
    run: Path = typer.Argument(..., help="Folder of a finished run."),
    images: list[Path] = typer.Argument(..., help="Images, or folders of images."),
    out: Path = typer.Option(..., help="Folder of features and map; an older map in it is replaced."),
    csv: bool = typer.Option(False, "--csv", help="Write features.csv too."),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave unreadable images out, and log them."),
    device: str | None = typer.Option(None, help="auto, cpu, cuda, …; the run's own, if it is here and none is given."),
    seed: int = typer.Option(
        0, min=0, max=2**32 - 1, help="Drives the map, and which images it shows of more than 5,000."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print embedding.json."),
) -> None:
    """Write the features of images, and a page with a map of them and the images that are most alike.

    Example: roclab vision embed runs/elpv cells --out map
    """
    from roclab.report.embedding_page import write_embedding
    from roclab.report.folders import EMBEDDING
    from roclab.vision.evaluate.embed import embed as embed_images

    EMBEDDING.check(out)  # before minutes go into the features
    found = embed_images(run, images, skip_bad, device)
    record = write_embedding(found, out, csv, seed)
    n, d = found.features.shape
    text = f"{n} images, {d} features each: {out / 'features.npz'}\nmap: {out.resolve() / 'index.html'}"
    show(record, as_json, text)


@app.command()
def suggest(
    run: Path = typer.Argument(..., help="Folder of a finished run."),
    images: list[Path] = typer.Argument(..., help="Images without labels, or folders of them."),
    n: int = typer.Option(20, "--n", min=1, help="How many images to name."),
    out: Path | None = typer.Option(None, help="A new CSV file of them: path, an empty label, margin, classes."),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave unreadable images out, and log them."),
    device: str | None = typer.Option(None, help="auto, cpu, cuda, …; the run's own, if it is here and none is given."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON list."),
) -> None:
    """Name the images that are worth labelling next: the run is unsure of them, and they are unlike one another.

    Example: roclab vision suggest runs/elpv cells --n 20 --out to_label.csv
    """
    from roclab.vision.evaluate.embed import embed as embed_images
    from roclab.vision.evaluate.suggest import suggest as suggest_images
    from roclab.vision.evaluate.suggest import write_table

    if out and out.exists():
        raise RocLabError(f"{out} is there already, perhaps with labels of yours: choose another --out")
    found = suggest_images(embed_images(run, images, skip_bad, device, new_only=True), n)
    if out:
        write_table(found, out)
    named = (
        (row, [f"{c} {p:.3f}" for c, p in zip(row["classes"], row["probabilities"], strict=True)]) for row in found
    )
    lines = [f"{row['path']}: margin {row['margin']:.3f}, {' or '.join(classes)}" for row, classes in named]
    show(found, as_json, "\n".join([*lines, *([f"table: {out}"] if out else [])]))


@app.command()
@options_from(TrainConfig, "source", only=("data_root", "mirror"))
def audit(
    source: TrainConfig,
    data: str = typer.Argument(..., help="pets, elpv, a folder, or a CSV path,label[,split]."),
    as_json: bool = typer.Option(False, "--json", help="Print everything as JSON."),
) -> None:
    """Look at every image before training: classes, sizes, formats, faults by name, duplicates.

    Example: roclab vision audit my_images
    """
    from roclab.vision.data.audit import audit as audit_images
    from roclab.vision.data.audit import describe

    report = audit_images(data, source.data_root, source.mirror)
    show(report, as_json, describe(report))


@app.command()
def errors(
    runs: list[Path] = typer.Argument(..., help="Folders of finished runs, evaluated on the same images."),
    out: Path = typer.Option(..., help="Folder of the page; an older page in it is replaced."),
    split: str | None = typer.Option(
        None, help="val or test; test if every run has been evaluated on it, else val, if not given."
    ),
    data_root: str | None = typer.Option(None, help="Where the runs' images are now, if they have moved."),
    heat_maps: bool = typer.Option(True, "--heat-maps/--no-heat-maps", help="Grad-CAM: runs the networks."),
    seed: int = typer.Option(0, min=0, max=2**32 - 1, help="Drives bootstrap, permutation tests and the images drawn."),
    as_json: bool = typer.Option(False, "--json", help="Print all facts as JSON (they are in errors.json too)."),
) -> None:
    """Explain errors: hardest classes, confusions, images, calibration, labels in doubt, what decided; a page with all.

    Example: roclab vision errors runs/pets/resnet50-features runs/pets/swin_t-features --out errors
    """
    from roclab.core.sentences import KINDS
    from roclab.report.error_page import write_page
    from roclab.report.folders import ERRORS
    from roclab.vision.error_analysis.facts import analyse
    from roclab.vision.evaluate.run_reader import VisionRun

    ERRORS.check(out)  # before minutes go into the analysis
    facts = analyse([VisionRun.open(run) for run in runs], split, seed, data_root, heat_maps)
    page = write_page(facts, out)
    for note in facts["notes"]:
        logger.info("note: %s", note)
    width = max(map(len, KINDS.values()))
    lines = [f"{KINDS[row['evidence']['kind']]:{width}}  {row['text']}" for row in facts["sentences"]]
    show(facts, as_json, "\n".join([*lines, f"page: {page}"]))
