"""The report: its numbers are the runs' own, its text survives every format, and runs that do not fit are refused."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roclab.core.exceptions import RocLabError
from roclab.core.sentences import escape
from roclab.report.build import report
from roclab.report.error_page import write_page
from roclab.report.formats import FORMAT
from roclab.report.kit import TEMPLATES, command_lines
from roclab.report.privacy import absolute_paths
from roclab.report.settings import OBSERVATIONS, Settings
from roclab.report.words import refs
from roclab.vision.error_analysis.facts import analyse
from roclab.vision.evaluate.run_reader import VisionRun
from tests.processes import roclab
from tests.report.conftest import NAME, train_and_evaluate
from tests.vision import small

ME = Settings(author=NAME, student_id="31415", consulted=[], ai_tools=["x_y & z"])


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("written") / "report"
    return out, report([trained], out, ME)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_every_format_is_there_and_holds_the_name(written):
    out, _ = written
    assert (out / "report.pdf").read_bytes().startswith(b"%PDF")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert html.escape(NAME, quote=False) in page
    tex = (out / "report.tex").read_text(encoding="utf-8")
    assert r"Jörg\_Müller \& Söhne \#1 \{50\%\}" in tex
    assert {p.name for p in (out / "figures").iterdir()} >= {
        f"{name}.{ending}" for name in ("loss", "accuracy", "f1", "confusion-1") for ending in ("svg", "pdf")
    }


def test_the_numbers_are_those_of_the_run_folders(written, trained):
    out, facts = written
    text = (out / "report.md").read_text(encoding="utf-8")
    found = json.loads((trained / "finetune-0" / "results-test.json").read_text(encoding="utf-8"))
    low, high = found["ci95"]["top1"]
    assert f"{100 * found['top1']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in text
    for run in ("features-0", "features-1", "finetune-0"):
        assert run in text
    assert [run["ref"] for run in facts["runs"]] == ["R1", "R2", "R3"]
    assert facts["runs"][0]["files"]["results-test.json"]
    assert "**People consulted:** nobody." in text.split("# Summary")[0]


def test_what_was_not_given_is_said(written):
    out, facts = written
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "No tokenizer lab was given" in text
    assert "not checked" in text
    assert any("tokenizer lab" in warning for warning in facts["warnings"])


def test_nothing_of_the_machine_is_in_it(written):
    out, _ = written
    for name in ("report.md", "report.tex", "report.html", "facts.json", "comparison.json"):
        assert not absolute_paths((out / name).read_text(encoding="utf-8")), name


def test_better_is_said_only_where_it_is_shown(written):
    out, facts = written
    text = (out / "report.md").read_text(encoding="utf-8")
    for pair, said in zip(facts["comparison"]["pairs"], facts["comparison"]["sentences"], strict=True):
        assert said["text"].count(" is better than ") == pair["shown"]
    # on the cover, in the summary, under accuracy, and where the question is discussed
    assert text.count(" is better than ") <= 4 * sum(pair["shown"] for pair in facts["comparison"]["pairs"])


def test_the_same_runs_give_the_same_report(written, trained, tmp_path):
    out, _ = written
    report([trained], tmp_path / "again", ME)
    for name in ("report.md", "report.tex", "report.pdf", "facts.json"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.skipif(not shutil.which("lualatex"), reason="lualatex is not installed")
@pytest.mark.parametrize("author", [NAME, "名前 Ελλη Żółć"])
def test_the_tex_compiles_under_lualatex(trained, tmp_path, author):
    report([trained], tmp_path / "report", Settings(author=author, student_id="1"))
    done = subprocess.run(
        ["lualatex", "-halt-on-error", "-interaction=nonstopmode", "report.tex"],
        cwd=tmp_path / "report", capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode("latin-1")[-2000:]


def test_letters_that_a_format_lacks_are_warned_of(trained, tmp_path):
    facts = report([trained], tmp_path / "report", Settings(author="名前", student_id="1"))
    assert "名前" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert any("report.tex needs a font that has 前名" in warning for warning in facts["warnings"])


def test_unfilled_settings_are_said_in_report_and_warnings(trained, tmp_path):
    facts = report([trained], tmp_path / "report", Settings())
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "AI tools used: not filled in" in text
    assert any("people consulted" in warning for warning in facts["warnings"])


def test_an_interrupted_run_is_shown_and_takes_part_in_nothing(runs, tmp_path):
    (runs / "features-1" / "training.json").unlink()
    facts = report([runs], tmp_path / "report", ME)
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "**cut short**" in text
    assert facts["comparison"]["arms"]["test_resnet, frozen (random weights)"]["runs"] == ["R1"]
    assert any("features-1 was cut" in warning for warning in facts["warnings"])


def test_when_every_run_was_cut_the_way_on_is_said(runs, tmp_path):
    for run in runs.iterdir():
        (run / "training.json").unlink()
    with pytest.raises(RocLabError, match=r"no run was trained to its end.*--resume"):
        report([runs], tmp_path / "report", ME)
    assert not (tmp_path / "report").exists()


def test_missing_runs_are_named_all_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RocLabError, match=r"gone does not exist; .*empty holds no run"):
        report([tmp_path / "gone", tmp_path / "empty"], tmp_path / "report", ME)


def test_a_run_of_another_split_is_refused_by_name(runs, tmp_path):
    other = small.make_images(tmp_path / "other", each=10)
    train_and_evaluate(other, runs / "stranger", seed=3, refit=False)
    with pytest.raises(RocLabError, match=r"stranger is evaluated on other test images"):
        report([runs], tmp_path / "report", ME)


def test_another_validation_cut_under_the_same_seed_is_refused(runs, images, tmp_path):
    train_and_evaluate(images, runs / "wider", seed=0, refit=False, val_fraction=0.4)
    with pytest.raises(RocLabError, match=r"wider cuts other validation images"):
        report([runs], tmp_path / "report", ME)


def test_a_run_that_was_not_evaluated_on_test_comes_with_the_command(runs, tmp_path):
    (runs / "finetune-0" / "results-test.json").unlink()
    with pytest.raises(RocLabError, match=r"roclab vision evaluate .*finetune-0 --split test"):
        report([runs], tmp_path / "report", ME)
    facts = report([runs / "finetune-0"], tmp_path / "report", ME, split="val")
    assert any("validation images" in warning for warning in facts["warnings"])


def test_the_same_run_twice_is_refused(runs, tmp_path):
    shutil.copytree(runs / "features-0", runs / "copy", symlinks=True)
    with pytest.raises(RocLabError, match="the same run"):
        report([runs], tmp_path / "report", ME)


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    shutil.move(runs / "features-1", tmp_path / "more" / "features-0")
    facts = report([runs, tmp_path / "more"], tmp_path / "report", ME)
    assert {run["name"] for run in facts["runs"]} == {"runs-features-0", "more-features-0", "finetune-0"}


def test_a_damaged_file_is_one_line(runs, tmp_path):
    (runs / "features-0" / "split.json").write_text("{", encoding="utf-8")
    with pytest.raises(RocLabError, match=r"split\.json is damaged"):
        report([runs], tmp_path / "report", ME)


def test_a_class_without_a_test_image_has_dashes_and_a_note(tmp_path):
    data = tmp_path / "data"
    small.make_images(data / "train", each=10)
    small.make_images(data / "test", each=4)
    shutil.rmtree(data / "test" / "sky")
    run = train_and_evaluate(data, tmp_path / "run", refit=False)
    facts = report([run], tmp_path / "report", ME)
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert facts["data"]["without_test_images"] == ["sky"]
    assert "The test split has no image of sky" in text
    _, row = (line for line in text.splitlines() if line.startswith("| sky |"))  # of validation images, of test images
    assert row.split("|")[2].strip() == "0"
    assert row.rstrip(" |").endswith("– · –")


def test_a_folder_that_is_no_report_is_left_alone(trained, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(RocLabError, match="is not a report"):
        report([trained], tmp_path / "mine", ME)
    assert (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8") == "years of work"
    with pytest.raises(RocLabError, match="is not a report"):
        report([trained], tmp_path / "new" / ".." / "mine", ME)


def test_what_the_author_laid_beside_an_older_report_stays(trained, tmp_path):
    report([trained], tmp_path / "report", ME)
    (tmp_path / "report" / "notes.txt").write_text("ask about table 3", encoding="utf-8")
    (tmp_path / "report" / "report.md").write_text("older", encoding="utf-8")
    report([trained], tmp_path / "report", ME)
    assert (tmp_path / "report" / "notes.txt").read_text(encoding="utf-8") == "ask about table 3"
    assert (tmp_path / "report" / "report.md").read_text(encoding="utf-8") != "older"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_place_that_cannot_be_written_is_named(trained, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RocLabError, match=r"cannot write the report to .*file.report: "):
        report([trained], tmp_path / "file" / "report", ME)


def test_a_full_disk_is_named_and_leaves_nothing(trained, tmp_path, monkeypatch):
    import errno

    from roclab.report import build

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build, "write_json", full)  # the disk is the outside here
    with pytest.raises(RocLabError, match=r"cannot write the report to .*report: No space left on device"):
        report([trained], tmp_path / "report", ME)
    assert list(tmp_path.iterdir()) == []


def test_a_report_replaces_the_older_ones_files(trained, tmp_path):
    report([trained], tmp_path / "report", ME)
    (tmp_path / "report" / "figures" / "older.svg").write_text("of an older version", encoding="utf-8")
    edit(tmp_path / "report" / "facts.json", files=["report.md", "figures/older.svg"])
    report([trained / "finetune-0"], tmp_path / "report", ME)
    assert not (tmp_path / "report" / "figures" / "older.svg").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_an_error_analysis_of_other_runs_is_refused(trained, tmp_path):
    (tmp_path / "errors").mkdir()
    about = {"split": "test", "runs": [{"name": "someone-elses"}], "sentences": [], "captions": {}, "images": {}}
    (tmp_path / "errors" / "errors.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(RocLabError, match="someone-elses"):
        report([trained], tmp_path / "report", ME, errors=tmp_path / "errors")
    edit(tmp_path / "errors" / "errors.json", split="val", runs=[])
    with pytest.raises(RocLabError, match="explains errors on val"):
        report([trained], tmp_path / "report", ME, errors=tmp_path / "errors")


def test_sentences_and_figures_of_a_tool_stand_together_by_topic(trained, tmp_path):
    runs = [VisionRun.open(trained / name) for name in ("features-0", "finetune-0")]
    write_page(analyse(runs, "test", decided=False), tmp_path / "errors")
    report([trained], tmp_path / "report", ME, errors=tmp_path / "errors")
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    section = text.split("# Appendix: the error analysis in full\n")[1].split("\n# ")[0]
    topics = {part.split("\n")[0]: part for part in section.split("## ")[1:]}
    assert "figures/errors-calibration.png" in topics["Calibration"]
    assert "figures/errors-hardest.png" in topics["Classes and confusions"]
    assert "figures/errors-covariates.png" in topics["What the image has to do with it"]
    assert r"*\[measured\]*" in section
    assert r"\[none\]" not in section  # a reader's words: not shown


def test_figures_stay_in_their_section(written):
    """No format may let a picture float past the next heading."""
    typ = (TEMPLATES / "report.typ").read_text(encoding="utf-8")
    assert "placement: auto" not in typ
    assert r"\floatplacement{figure}{H}" in (written[0] / "report.tex").read_text(encoding="utf-8")


def test_the_optimiser_of_each_run_is_named(runs, tmp_path):
    """SGD where the configuration says so, AdamW where it does or, in older runs, says nothing."""
    sgd, adamw = (
        "all parameters are trained (SGD with Nesterov’s momentum of 0.9, ",
        "all parameters are trained (AdamW, ",
    )
    edit(runs / "finetune-0" / "config.json", optimizer="sgd")
    report([runs], tmp_path / "one", ME)
    text = (tmp_path / "one" / "report.md").read_text(encoding="utf-8")
    assert text.count(sgd) == 1
    assert adamw not in text

    shutil.copytree(runs / "finetune-0", runs / "finetune-1", symlinks=True)
    edit(runs / "finetune-1" / "config.json", optimizer="adamw")
    for again in ("adamw", None):
        if again is None:
            config = json.loads((runs / "finetune-1" / "config.json").read_text(encoding="utf-8"))
            del config["optimizer"]
            (runs / "finetune-1" / "config.json").write_text(json.dumps(config), encoding="utf-8")
        facts = report([runs], tmp_path / str(again), ME)
        assert len(facts["arms"]) == 3
        text = (tmp_path / str(again) / "report.md").read_text(encoding="utf-8")
        assert (text.count(sgd), text.count(adamw)) == (1, 1)


def test_a_run_that_kept_its_starting_head_is_called_that_throughout(runs, tmp_path):
    edit(runs / "finetune-0" / "training.json", best_epoch=0)
    for run in runs.iterdir():  # the choice was made on these, whatever a step on the way came to
        edit(run / "results-val.json", top1=0.625)
    facts = report([runs], tmp_path / "report", ME)
    _, tuned = facts["arms"]
    assert tuned == "test_resnet, fine-tuned (random weights, kept its starting head)"
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert text.count("kept its starting head") > 10
    assert "(kept its starting head) |" in next(
        line for line in text.split("# Accuracy")[1].splitlines() if line.startswith("| test\\_resnet |")
    )
    assert "finished, kept its starting head |" in text
    assert "no epoch of fine-tuning was better on validation than the head it began with" in text
    assert [arm["best_val"] for arm in facts["comparison"]["arms"].values()] == [[0.625, 0.625], [0.625]]


def test_steps_of_a_solver_and_epochs_are_not_compared(runs, tmp_path):
    edit(
        runs / "features-0" / "results-test.json", epochs_to_convergence=7, mean_train_seconds_per_epoch=1.0
    )  # as once
    facts = report([runs], tmp_path / "report", ME)
    frozen, tuned = facts["comparison"]["arms"].values()
    assert (frozen["epochs_to_convergence"], frozen["mean_train_seconds_per_epoch"]) == ([None, None], None)
    assert frozen["train_seconds"] == frozen["head_seconds"] > 0
    assert tuned["train_seconds"] > tuned["head_seconds"]
    assert [(run["epochs_done"], bool(run["solver_steps"])) for run in facts["runs"]] == [
        (None, True), (None, True), (2, False)]  # fmt: skip
    said = [s["text"] for s in facts["sentences"] if s["topic"] == "Strategies"]
    assert "Training took " in said[0]
    assert not any("epochs to convergence" in text or "an epoch" in text for text in said)


def test_two_that_are_level_are_both_called_highest(runs, tmp_path):
    best = json.loads((runs / "features-0" / "results-test.json").read_text(encoding="utf-8"))
    for run in runs.iterdir():
        edit(run / "results-test.json", top1=best["top1"], ci95=best["ci95"])
    edit(runs / "finetune-0" / "training.json", best_epoch=2)
    report([runs], tmp_path / "report", ME)
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert r"that of test\_resnet, frozen (random weights) and test\_resnet, fine-tuned (random weights): " in text


def test_other_tools_words_are_shown_not_obeyed(trained, lab, tmp_path):
    report([trained], tmp_path / "report", ME, lab=lab)
    assert r"The ID is \*five\* tokens" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_the_authors_own_words_stand_in_their_chapter_and_what_is_missing_is_said(trained, tmp_path):
    file = tmp_path / "me.toml"
    file.write_text('[observations]\ntraining = "It *fell* quickly."\nroclm = " "\n', encoding="utf-8")
    facts = report([trained], tmp_path / "report", Settings.read(file))
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    chapter = text.split("# Training curves and convergence")[1].split("\n# ")[0]
    assert r"> **In the author’s own words.** It \*fell\* quickly." in chapter
    assert facts["observations_missing"] == [key for key in OBSERVATIONS if key != "training"]
    assert any("no words of the author's own on accuracy, classes" in warning for warning in facts["warnings"])
    file.write_text('[observations]\ntrainig = "x"\n', encoding="utf-8")
    with pytest.raises(RocLabError, match=r"\[observations\] has unknown keys: trainig \(known: training, "):
        Settings.read(file)
    file.write_text('observations = "x"\n', encoding="utf-8")
    with pytest.raises(RocLabError, match="must have a text for each key"):
        Settings.read(file)


def test_the_cover_shows_images_and_what_is_predicted(trained, tmp_path):
    runs = [VisionRun.open(trained / name) for name in ("features-0", "finetune-0")]
    write_page(analyse(runs, "test", decided=False), tmp_path / "errors")
    facts = report([trained], tmp_path / "report", ME, errors=tmp_path / "errors")
    shown = facts["gallery"]["sheet"]["pictures"]
    cover = (tmp_path / "report" / "report.md").read_text(encoding="utf-8").split("\n# Summary")[0]
    assert len(shown) > 3
    assert all(f"figures/image-{picture['file']}" in cover for picture in shown)
    assert all((tmp_path / "report" / "figures" / f"image-{picture['file']}").exists() for picture in shown)
    assert "AI tools used:" in cover


def test_a_curve_over_images_a_class(trained, images, tmp_path):
    few = [train_and_evaluate(images, tmp_path / "few" / s, strategy=s, refit=False) for s in ("features",)]
    facts = report([trained], tmp_path / "report", ME, curve=tmp_path / "few")
    used = [image for image in VisionRun.open(few[0]).manifest["images"] if image["split"] != "test"]
    assert [point["images"] for point in facts["curve"]["points"]] == [round(len(used) / 3)]
    assert "figures/curve" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    with pytest.raises(RocLabError, match="none does not exist"):
        report([trained], tmp_path / "again", ME, curve=tmp_path / "none")


def test_settings_name_an_unknown_key_and_take_a_number_as_id(tmp_path):
    file = tmp_path / "me.toml"
    file.write_text('student_id = 31415\nai_tools = "one"\nconsulted = []\n', encoding="utf-8")
    found = Settings.read(file)
    assert (found.author, found.student_id, found.ai_tools, found.consulted) == (None, "31415", ["one"], [])
    said = found.with_given(Settings(author="Ada", consulted=[""], ai_tools=["two", " "]))
    assert (said.author, said.student_id, said.ai_tools, said.consulted) == ("Ada", "31415", ["two"], [])
    file.write_text('autor = "x"\n', encoding="utf-8")
    with pytest.raises(RocLabError, match="unknown keys: autor"):
        Settings.read(file)
    with pytest.raises(RocLabError, match=r"gone\.toml"):
        Settings.read(tmp_path / "gone.toml")


def test_references_and_commands_are_short():
    assert refs(["R3", "R1", "R2", "R7"]) == "R1–R3, R7"
    lines = command_lines(["roclab", "vision", "train", *["--option=value"] * 20])
    assert all(len(line) <= 110 for line in lines)
    assert all(line.endswith("\\") for line in lines[:-1])


@settings(deadline=None)  # each example starts a program
@given(st.lists(st.text(alphabet="ab \\`*_{}[]()<>#+-.!|~^$@&\"':%=/1é", max_size=20), min_size=5, max_size=5))
def test_escaped_text_comes_out_of_pandoc_as_it_went_in(texts):
    import pypandoc

    source = "\n\n".join(f"x{i} {escape(text)}" for i, text in enumerate(texts))
    shown = pypandoc.convert_text(source, "plain", format=FORMAT, extra_args=["--wrap=none"])
    wanted = [" ".join(f"x{i} {text}".split()) for i, text in enumerate(texts)]
    assert [line for line in shown.splitlines() if line] == wanted


def test_the_checks_of_roclm_are_a_table_with_hints(trained, tmp_path):
    checks = [
        {"name": "formula", "component": "RMSNorm", "passed": True, "deviation": 1e-7, "hint": ""},
        {"name": "positions", "component": "RoPE", "passed": False, "deviation": 0.5, "hint": "rotates v | too"},
    ]
    report([trained], tmp_path / "report", ME, verify={"score": 0.5, "passed": False, "checks": checks})
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "1 passed, 1 failed" in text
    assert r"**failed**: rotates v \| too | 5.0e-01 |" in text
    assert (tmp_path / "report" / "verify.json").exists()


@pytest.mark.parametrize("command", ["report", "handin"])
def test_the_command_line_gives_one_line_and_code_2(command, tmp_path):
    own = {
        "report": ["--out", tmp_path / "out"],
        "handin": ["--student-id", "1", "--name", "x", "--report", tmp_path, "--lab", tmp_path],
    }[command]
    done = roclab(command, "--runs", tmp_path / "gone", *own)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "gone does not exist" in done.stderr
    shown = roclab(command, "--help")
    assert f"Example: roclab {command}" in " ".join(shown.stdout.replace("│", " ").split())
