"""`roclab vision …`: transfer learning for images."""

from __future__ import annotations

from pathlib import Path

import typer

from roclab.cli.output import print_json
from roclab.core.exceptions import RocLabError

app = typer.Typer(help="Transfer learning for images.", no_args_is_help=True)

DATA = typer.Option(
    "elpv", help="pets, elpv, a folder (a folder per class, or train/val/test), or a CSV path,label[,split]."
)
DATA_ROOT = typer.Option(None, help="Where the pets are, or should be downloaded to; the base of a CSV's paths.")


@app.callback()
def commands() -> None:
    """Transfer learning for images."""


@app.command()
def train(
    data: str = DATA,
    data_root: str | None = DATA_ROOT,
    mirror: str | None = typer.Option(None, help="Where else to download the pets from."),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave unreadable images out, everywhere, and say so."),
    model: str = typer.Option("efficientnet_lite0", help="resnet50, swin_t, efficientnet_lite0, or any timm name."),
    weights: str = typer.Option("default", help="default, none, v1, v2, or a .safetensors or .pth file."),
    strategy: str = typer.Option("features", help="features: the backbone is frozen; finetune: everything learns."),
    epochs: int | None = typer.Option(None, help="Epochs; the model's default if not given."),
    budget: str | None = typer.Option(None, help="Time to spend, such as 20m: chooses epochs and image size."),
    image_size: int | None = typer.Option(None, help="Pixels; the weights' own size if not given."),
    seed: int = typer.Option(0, help="Cuts the validation split and drives the training."),
    out: Path | None = typer.Option(None, help="Folder of the run."),
    resume: Path | None = typer.Option(None, help="Go on with the interrupted run in this folder."),
    val_fraction: float = typer.Option(0.2, help="Share of the training part that validates."),
    full_frame: bool = typer.Option(
        False, "--full-frame", help="Judge the whole image, not its centre as ImageNet does."
    ),
    views: int = typer.Option(
        1, help="features: 2 adds each image's mirror image, more add symmetries and random crops."
    ),
    refit: bool | None = typer.Option(None, help="features: train the head again on train + val once C is chosen."),
    lp_ft: bool | None = typer.Option(None, "--lp-ft/--no-lp-ft", help="finetune: start from the trained head."),
    optimizer: str | None = typer.Option(None, help="finetune: adamw or sgd."),
    lr: float | None = typer.Option(None, help="finetune: learning rate of the head."),
    layer_decay: float | None = typer.Option(None, help="finetune: each earlier layer learns at this fraction."),
    weight_decay: float | None = typer.Option(None, help="finetune: not on norms and biases."),
    batch_size: int | None = typer.Option(None, help="finetune: images a batch, over all processes."),
    accumulate: int = typer.Option(1, help="finetune: batches whose gradients make one step."),
    label_smoothing: float | None = typer.Option(None, help="finetune."),
    mixup: float | None = typer.Option(None, help="finetune: alpha; 0 is off."),
    cutmix: float | None = typer.Option(None, help="finetune: alpha; 0 is off."),
    ema: float | None = typer.Option(None, help="finetune: decay of the weight average; 0 is off."),
    patience: int | None = typer.Option(None, help="finetune: stop so many epochs after the best; 0 never stops."),
    batch_norm: str | None = typer.Option(None, help="finetune: train or frozen statistics."),
    min_area: float | None = typer.Option(None, help="finetune: smallest random crop, as a share of the image."),
    randaugment: bool = typer.Option(False, "--randaugment", help="finetune: RandAugment on top of crop and flip."),
    progressive: bool | None = typer.Option(None, help="finetune: early epochs at a lower resolution."),
    gradual: float | None = typer.Option(None, help="finetune: share of the epochs in which the early layers rest."),
    workers: int | None = typer.Option(None, help="finetune: processes that read images."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1, mps."),
) -> None:
    """Train one model on one split.

    Example: roclab vision train --data elpv --model efficientnet_lite0 --strategy features --out runs/elpv
    """
    given = {k: v for k, v in locals().items() if k not in ("out", "resume")}
    from roclab.core.training.distributed import leave
    from roclab.vision.train.config import TrainConfig
    from roclab.vision.train.train import resume as carry_on
    from roclab.vision.train.train import train as begin

    if (out is None) == (resume is None):
        raise RocLabError("say where the run goes with --out RUN, or which one goes on with --resume RUN")
    try:
        if resume is not None:
            carry_on(resume, data_root)
        elif out is not None:
            begin(TrainConfig(**given), out)
    finally:
        leave()


@app.command()
def evaluate(
    run: Path = typer.Argument(..., help="Folder of a finished run."),
    split: str = typer.Option("val", help="val or test. Opening test is recorded in the run."),
    data_root: str | None = typer.Option(None, help="Where the run's images are now, if they have moved."),
    as_json: bool = typer.Option(False, "--json", help="Print everything as JSON."),
) -> None:
    """Judge a run: accuracy with intervals, calibration, scores of each class, confusion matrix.

    Example: roclab vision evaluate runs/elpv --split test --json
    """
    from roclab.core.runs import Run
    from roclab.vision.evaluate.evaluate import evaluate as judge
    from roclab.vision.evaluate.figures import run_figure

    opened = Run.open(run)
    found = judge(opened, split, data_root=data_root)
    picture = run_figure(opened, split)
    if as_json:
        print_json(found)
        return
    low, high = found["ci95"]["top1"]
    print(f"{found['split']}: top-1 {found['top1']:.4f} [{low:.4f}, {high:.4f}] on {found['n']} images")
    low, high = found["ci95"]["mean_per_class"]
    print(f"mean per class {found['mean_per_class']:.4f} [{low:.4f}, {high:.4f}]")
    print(f"macro F1 {found['macro_f1']:.4f}, calibration error {found['ece']:.4f}")
    width = max(map(len, found["per_class"]))
    print(f"{'':{width}}  precision  recall      F1  images")
    for name, row in found["per_class"].items():
        print(f"{name:{width}}  {row['precision']:9.3f}  {row['recall']:6.3f}  {row['f1']:6.3f}  {row['support']:6d}")
    print(f"picture: {picture}")


@app.command()
def compare(
    models: str = typer.Option("resnet50,swin_t", help="Models, with commas between."),
    strategies: str = typer.Option("features,finetune", help="Strategies, with commas between."),
    seeds: int = typer.Option(3, min=1, help="How many seeds, from 0; or from --first-seed."),
    first_seed: int = typer.Option(0, help="The first seed."),
    data: str = DATA,
    data_root: str | None = DATA_ROOT,
    mirror: str | None = typer.Option(None, help="Where else to download the pets from."),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave unreadable images out, everywhere, and say so."),
    weights: str = typer.Option("default", help="As in train; or one for each model: resnet50=FILE,swin_t=none."),
    epochs: int | None = typer.Option(None, help="Epochs of every run."),
    budget: str | None = typer.Option(None, help="Time for each run, such as 20m."),
    image_size: int | None = typer.Option(None, help="Pixels, for every run."),
    engine: str = typer.Option("local", help="local, or ray: the runs are tasks of a Ray cluster."),
    out: Path = typer.Option(..., help="Folder of the comparison; the runs are folders inside."),
    as_json: bool = typer.Option(False, "--json", help="Print comparison.json."),
) -> None:
    """Train every model under every strategy, and say which is better, by how much, and how sure that is.

    Example: roclab vision compare --models resnet50,swin_t --seeds 3 --data pets --data-root data --out runs/pets
    """
    from roclab.vision.compare import compare as compare_runs
    from roclab.vision.compare import markdown
    from roclab.vision.train.config import TrainConfig

    names = [name.strip() for name in models.split(",") if name.strip()]
    own: dict[str, str] = {}
    for part in weights.split(",") if "=" in weights else []:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (equals and value and name in names):
            raise RocLabError(f"--weights {part}: write MODEL=WEIGHTS for each, with a MODEL of --models ({models})")
        own[name] = value
    base = TrainConfig(
        data=data,
        data_root=data_root,
        mirror=mirror,
        skip_bad=skip_bad,
        weights="default" if own else weights,
        epochs=epochs,
        budget=budget,
        image_size=image_size,
    )
    wanted = range(first_seed, first_seed + seeds)
    found = compare_runs(base, names, [s.strip() for s in strategies.split(",") if s.strip()], wanted, out, own, engine)
    if as_json:
        print_json(found)
    else:
        print(markdown(found))
        print(f"figures in {out / 'figures'}")


@app.command()
def predict(
    run: Path = typer.Argument(..., help="Folder of a finished run."),
    images: list[Path] = typer.Argument(..., help="Images, or folders of images."),
    top: int = typer.Option(5, min=1, help="How many classes to name."),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave unreadable images out, and say so."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON list."),
    engine: str = typer.Option("local", help="local, or ray: spread the images over a Ray cluster."),
) -> None:
    """Name what is in images.

    Example: roclab vision predict runs/elpv cell.png --top 2
    """
    from roclab.core.runs import Run
    from roclab.vision.evaluate.predict import predict as look

    found = look(Run.open(run), images, top, engine, skip_bad)
    if as_json:
        print_json(found)
        return
    for row in found:
        print(f"{row['path']}: " + ", ".join(f"{p['class']} {p['probability']:.3f}" for p in row["predictions"]))


@app.command()
def audit(
    data: str = typer.Argument(..., help="pets, elpv, a folder, or a CSV path,label[,split]."),
    data_root: str | None = DATA_ROOT,
    mirror: str | None = typer.Option(None, help="Where else to download the pets from."),
    as_json: bool = typer.Option(False, "--json", help="Print everything as JSON."),
) -> None:
    """Look at every image before training: classes, sizes, formats, faults by name, duplicates.

    Example: roclab vision audit my_images
    """
    from roclab.vision.data.audit import audit as look
    from roclab.vision.data.audit import describe

    report = look(data, data_root, mirror)
    if as_json:
        print_json(report)
    else:
        print(describe(report))
