"""The pictures: what a line is made of, and that nothing in them covers what it should name."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from roclab.core.files import write_json
from roclab.core.runs import Run
from roclab.vision.evaluate.figures import (
    _f1,
    _matrix_side,
    comparison_figures,
    confusion,
    curves,
    loss_figure,
    new_figure,
    run_figure,
)
from roclab.vision.evaluate.metrics import classification_metrics


def run_of(path, epochs, first=0, strategy="finetune"):
    """A run whose training loss at epoch 0 is far below that of epoch 1, as a trained head's is."""
    run = Run.create(path, {"model": "m", "strategy": strategy, "seed": 0})
    for epoch in range(first, epochs + 1):
        run.log_metrics(
            {
                "epoch" if strategy == "finetune" else "step": epoch,
                "train_loss": 2 / epoch if epoch else 0.01,
                "val_loss": 1.0 / (1 + epoch),
            }
        )
    run.close()
    return run


def drawn(axes):
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    return canvas.get_renderer()


@pytest.mark.parametrize("epochs", [1, 4, 60])
def test_the_training_line_begins_at_epoch_1_and_ticks_are_whole(tmp_path, epochs):
    axes = new_figure(8, 5).subplots()
    curves(axes, {"m finetune": [run_of(tmp_path / "run", epochs)]}, "finetune")
    val, training = axes.lines
    assert (val.get_linestyle(), training.get_linestyle()) == ("-", "--")
    assert list(val.get_xdata()) == list(range(epochs + 1))
    assert list(training.get_xdata()) == list(range(1, epochs + 1))
    assert min(training.get_ydata()) > 0.01  # the head's is not among them
    drawn(axes)
    low, high = axes.get_xlim()
    shown = [label.get_text() for at, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
             if low <= at <= high]  # fmt: skip
    assert {"0", "1"} <= set(shown)
    assert all(text == str(int(text)) for text in shown)
    assert len(shown) < 15


def test_steps_and_epochs_have_axes_of_their_own(tmp_path):
    frozen = run_of(tmp_path / "frozen", 60, first=1, strategy="features")
    arms = {"empty": [run_of(tmp_path / "empty", -1)], "frozen": [frozen], "tuned": [run_of(tmp_path / "tuned", 2)]}
    steps, epochs = loss_figure(8, 5, arms).axes
    drawn(steps)
    assert steps.get_ylim() == epochs.get_ylim()
    assert steps.get_ylim()[0] == 0
    assert steps.get_ylim()[1] > 2  # the highest training loss of both
    assert [axes.get_xlabel() for axes in (steps, epochs)] == [
        "step of the head's solver (frozen backbone)", "epoch (fine-tuning)"]  # fmt: skip
    assert [list(line.get_xdata()) for line in steps.lines] == [list(range(1, 61))] * 2
    assert [list(line.get_xdata()) for line in epochs.lines] == [[], [], [0, 1, 2], [1, 2]]
    assert {line.get_color() for line in steps.lines}.isdisjoint(line.get_color() for line in epochs.lines)
    assert len(loss_figure(8, 5, {"frozen": [frozen]}).axes) == 1


def test_the_legend_covers_no_bar():
    axes = new_figure(6, 4.5).subplots()
    _f1(axes, {f"model {i}": {f"class {c}": 1.0 for c in range(3)} for i in range(4)})
    renderer = drawn(axes)
    legend = axes.get_legend().get_window_extent(renderer)
    assert len(axes.patches) == 12
    assert not any(legend.overlaps(bar.get_window_extent(renderer)) for bar in axes.patches)
    assert legend.y1 <= axes.figure.bbox.y1


@pytest.mark.parametrize("classes", [3, 12, 13, 37, 120])
def test_names_of_a_confusion_matrix_stand_apart(classes):
    side = _matrix_side(classes)
    axes = new_figure(side, side).subplots()
    confusion(axes, np.eye(classes, dtype=int) * 12, [f"american terrier {i}" for i in range(classes)])
    renderer = drawn(axes)
    for labels, upright in ((axes.get_yticklabels(), False), (axes.get_xticklabels(), True)):
        boxes = [label.get_window_extent(renderer) for label in labels]
        if not upright or classes > 12:  # names aslant overlap as boxes, not as words
            assert not any(one.overlaps(other) for one, other in pairwise(boxes))
        assert all(axes.figure.bbox.x0 <= box.x0 and axes.figure.bbox.y0 <= box.y0 for box in boxes)
    cell = axes.get_window_extent(renderer).width / classes
    assert all(text.get_window_extent(renderer).width < cell for text in axes.texts)


@pytest.mark.parametrize("classes", [3, 37])
def test_runs_and_comparisons_of_few_and_many_classes_have_their_pictures(tmp_path, classes):
    labels = np.repeat(np.arange(classes), 2)
    probs = np.eye(classes)[labels] * 0.9 + 0.1 / classes
    runs = [run_of(tmp_path / name, 2) for name in ("a", "b")]
    for run in runs:
        names = [f"class {i}" for i in range(classes)]
        write_json(run.path / "results-test.json", {"split": "test", **classification_metrics(labels, probs, names)})
    assert run_figure(runs[0], "test").stat().st_size > 0
    made = comparison_figures({"a": runs[:1], "b": runs[1:]}, "test", tmp_path / "figures")
    assert [path.name for path in made] == ["loss.png", "accuracy.png", "confusion.png", "f1.png"]
    assert all(path.stat().st_size > 0 for path in made)
