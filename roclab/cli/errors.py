"""`roclab vision errors`: where and why trained classifiers fail."""

from __future__ import annotations

import logging
from pathlib import Path

import typer

from roclab.cli.output import print_json

logger = logging.getLogger(__name__)


def errors(
    runs: list[Path] = typer.Argument(..., help="Folders of finished runs, evaluated on the same images."),
    out: Path = typer.Option(..., help="Folder of the page; an older page in it is replaced."),
    split: str | None = typer.Option(
        None, help="val or test; test if every run has been evaluated on it, else val, if not given."
    ),
    data_root: str | None = typer.Option(None, help="Where the runs' images are now, if they have moved."),
    heat_maps: bool = typer.Option(True, "--heat-maps/--no-heat-maps", help="Grad-CAM: runs the networks."),
    seed: int = typer.Option(0, help="Drives bootstrap, permutation tests and the images drawn."),
    as_json: bool = typer.Option(False, "--json", help="Print all facts as JSON (they are in errors.json too)."),
) -> None:
    """Explain errors: hardest classes, confusions, images, calibration, labels in doubt, what decided; a page with all.

    Example: roclab vision errors runs/pets/resnet50-features runs/pets/swin_t-features --out errors
    """
    from roclab.report.error_page import write_page
    from roclab.report.folders import ERRORS
    from roclab.vision.error_analysis.facts import analyse
    from roclab.vision.evaluate.run_reader import VisionRun

    ERRORS.check(out)  # before minutes go into the analysis
    facts = analyse([VisionRun.open(run) for run in runs], split, seed, data_root, heat_maps)
    page = write_page(facts, out)
    for note in facts["notes"]:
        logger.info("note: %s", note)
    if as_json:
        print_json(facts)
        return
    width = max(len(row["evidence"]["kind"]) for row in facts["sentences"])
    for row in facts["sentences"]:
        print(f"{row['evidence']['kind']:{width}}  {row['text']}")
    print(f"page: {page}")
