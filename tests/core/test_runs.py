"""Run folders: atomic files, clear errors, logs that survive a crash."""

import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_file, atomic_write, file_sha256, read_json, write_json
from roclab.core.progress import heading, stage, track
from roclab.core.provenance import seed_everything
from roclab.core.runs import Run


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"n": 1})
    with pytest.raises(TypeError):
        write_json(path, {"n": object()})
    with pytest.raises(TypeError):
        atomic_write(path, 5)  # type: ignore[arg-type]
    assert read_json(path) == {"n": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"n": 1})
    code = (
        "import os, sys; from roclab.core import files\n"
        "os.fsync = lambda handle: os._exit(9)\n"  # dies after writing, before renaming
        "files.write_json(sys.argv[1], {'n': list(range(100000))})"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert read_json(path) == {"n": 1}


def test_written_files_have_the_usual_permissions(tmp_path: Path):
    atomic_write(tmp_path / "whole", "x")
    (tmp_path / "usual").write_text("x")
    with atomic_file(tmp_path / "replaced") as temporary:  # as safetensors writes, for its owner alone
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT, 0o600))
    for name in ("whole", "replaced"):
        assert (tmp_path / name).stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_numbers_of_numpy_and_torch_become_plain_json(tmp_path: Path):
    import torch

    write_json(tmp_path / "a.json", {"a": np.float32(0.5), "b": np.arange(2), "c": torch.ones(2), "d": tmp_path})
    assert read_json(tmp_path / "a.json") == {"a": 0.5, "b": [0, 1], "c": [1.0, 1.0], "d": str(tmp_path)}


@pytest.mark.parametrize("content", [None, "{", ""])
def test_a_missing_or_damaged_file_is_named_in_one_line(tmp_path: Path, content: str | None):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RocLabError, match="missing" if content is None else "damaged") as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_sha256_is_that_of_sha256sum(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_one_seed_drives_all_generators():
    import random

    import torch

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(3)
    first = draw()
    assert draw() != first
    seed_everything(3)
    assert draw() == first


def test_run_folder_round_trip(tmp_path: Path):
    run = Run.create(tmp_path / "run", {"seed": 4, "model": "x"}, data="abc")
    assert Run.open(run.path).config == {"seed": 4, "model": "x"}
    origin = read_json(run.path / "provenance.json")
    assert origin["seed"] == 4
    assert origin["hashes"] == {"data": "abc"}
    assert origin["versions"]["python"] == sys.version.split()[0]
    assert origin["versions"]["torch"]
    assert run.checkpoints.is_dir()


def test_a_run_is_never_written_over(tmp_path: Path):
    Run.create(tmp_path / "run", {"seed": 1})
    with pytest.raises(RocLabError, match="already holds a run"):
        Run.create(tmp_path / "run", {"seed": 2})
    assert Run.open(tmp_path / "run").config == {"seed": 1}


def test_a_run_cannot_be_made_in_a_file(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RocLabError, match="cannot write"):
        Run.create(tmp_path / "file" / "run", {})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.mkdir(), "no config.json"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("[1]")), "JSON object"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text('{"a"')), "damaged"),
    ],
)
def test_open_says_what_is_missing(tmp_path: Path, make, message: str):
    make(tmp_path / "run")
    with pytest.raises(RocLabError, match=message):
        Run.open(tmp_path / "run")


def test_metrics_survive_a_cut_last_line_and_are_cut_for_resuming(tmp_path: Path):
    run = Run.create(tmp_path / "run", {})
    assert run.metrics() == []
    for epoch in range(4):
        run.log_metrics({"epoch": epoch, "loss": 1 / (epoch + 1)})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "lo')  # a crash while writing
    assert [row["epoch"] for row in Run.open(run.path).metrics()] == [0, 1, 2, 3]
    run.truncate_metrics(1)
    run.log_metrics({"epoch": 2, "loss": 0.25})
    assert run.metrics() == [{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    (run.path / "metrics.jsonl").write_text('{"epoch": 0}\n{"epo\n{"epoch": 2}\n')
    with pytest.raises(RocLabError, match="line 2"):
        run.metrics()


def test_metrics_reach_tensorboard_and_a_resumed_run_hides_what_it_does_again(tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = Run.create(tmp_path / "run", {})
    for epoch, loss in enumerate([3.0, 2.0, 9.0]):
        run.log_metrics({"step": 10 * epoch, "epoch": epoch, "loss": loss, "note": "text is no curve"})
    run.truncate_metrics(10)
    time.sleep(1.1)  # the events' files are read in the order of their names: the second, then a count without zeros
    run.log_metrics({"step": 20, "epoch": 2, "loss": 1.0})
    run.close()
    events = accumulator.EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 3.0), (10, 2.0), (20, 1.0)]


def test_messages_of_a_run_go_to_its_log_until_it_is_closed(tmp_path: Path):
    first, second = (Run.create(tmp_path / name, {}) for name in "ab")
    logger = logging.getLogger("roclab.somewhere")
    first.log("left out a.jpg: 100%s")
    logger.info("from below")
    second.log("of the second")
    first.log("of the first again")
    first.close()
    logger.warning("nobody's")
    with second:
        logger.warning("the last")
    assert re.fullmatch(
        r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  left out a\.jpg: 100%s\n)(.*  from below\n)(.*  of the first again\n)",
        (first.path / "log.txt").read_text(),
    )
    assert [line[21:] for line in (second.path / "log.txt").read_text().splitlines()] == ["of the second", "the last"]


def test_within_a_stage_loops_are_quiet_and_a_heading_counts_what_follows(monkeypatch, caplog):
    monkeypatch.setattr("roclab.core.progress.LINE_EVERY", -1)
    caplog.set_level("INFO", "roclab")
    assert heading(60) == ""
    with stage("run 2 of 4", after=3600):
        assert heading(60) == "run 2 of 4, 1 h 01 min left: "
        assert list(track("ab", "batches")) == ["a", "b"]
        with stage("epoch 1 of 2", after=60):
            assert heading(0) == "run 2 of 4, epoch 1 of 2, 1 h 01 min left: "
    assert (heading(60), caplog.messages) == ("", [])
    assert list(track("ab", "batches")) == ["a", "b"]
    assert len(caplog.messages) == 2


def test_progress_of_a_run_is_a_file_while_it_is_active(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("roclab.core.progress.FILE_EVERY", 0)
    run = Run.create(tmp_path / "run", {})
    with run:
        for epoch in track(range(2), "epochs"):
            for _ in track("abcd", "batches"):  # inside another: not shown
                pass
            if epoch == 1:
                found = read_json(run.path / "progress.json")
                assert {"seconds", "left", "updated"} < set(found)
                assert (found["description"], found["done"], found["total"]) == ("epochs", 1, 2)
        assert (read_json(run.path / "progress.json")["done"], found["total"]) == (2, 2)
        for _ in track(iter("ab"), "of unknown length"):
            pass
        found = read_json(run.path / "progress.json")
        assert (found["done"], found["total"], found["left"]) == (2, None, None)
    assert not (run.path / "progress.json").exists()
    assert list(track("ab", "after")) == ["a", "b"]
    assert not (run.path / "progress.json").exists()
