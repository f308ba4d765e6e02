"""`roclab vision errors`: from run folders to facts, sentences and a page; and runs that do not fit together."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from roclab.core.exceptions import RocLabError
from roclab.core.files import read_json
from roclab.core.sentences import lookup, pointer
from roclab.report.error_page import write_page
from roclab.vision.error_analysis.covariates import annotated, measure
from roclab.vision.error_analysis.facts import analyse
from roclab.vision.evaluate.evaluate import evaluate
from roclab.vision.evaluate.run_reader import VisionRun
from roclab.vision.train.train import train
from tests.processes import roclab
from tests.vision.finished import finished_run
from tests.vision.small import config, make_images


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    return make_images(tmp_path / "images", each=20)


class Checker(HTMLParser):
    """What a page is made of: the tags, the files it shows, and whether every tag is closed."""

    def __init__(self):
        super().__init__()
        self.tags, self.files, self.open = set(), [], []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.files += [value for name, value in attributes if name in ("src", "href") and not value.startswith("#")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(page):
    checker = Checker()
    checker.feed(page.read_text(encoding="utf-8"))
    assert not checker.open
    assert "script" not in checker.tags
    assert all((page.parent / file).is_file() for file in checker.files), checker.files
    return checker


def test_trained_runs_all_the_way_through_the_command_line(images, tmp_path):
    runs = [train(config(images, seed=0), tmp_path / "a").path]
    runs.append(train(config(images, strategy="finetune", epochs=1), tmp_path / "b").path)
    cache = {"ROCLAB_CACHE": str(tmp_path / "cache")}
    done = roclab("vision", "errors", *runs, "--out", tmp_path / "val", "--json", **cache)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["split"] == "val"  # nobody has opened test
    for run in runs:
        assert roclab("vision", "evaluate", run, "--split", "test", **cache).returncode == 0
    done = roclab("vision", "errors", *runs, "--out", tmp_path / "page", **cache)
    assert done.returncode == 0, done.stderr
    assert f"page: {tmp_path / 'page' / 'index.html'}" in done.stdout
    facts = read_json(tmp_path / "page" / "errors.json")
    assert facts["split"] == "test"
    assert facts["n"] == read_json(runs[0] / "results-test.json")["n"]
    for run, row in zip(runs, facts["runs"], strict=True):
        assert row["top1"] == read_json(run / "results-test.json")["top1"]
    assert facts["decided"]["arms"].keys() == facts["arms"].keys() - facts["left_out"].keys()
    for row in facts["decided"]["shown"]:
        heat = np.array(row["heat"])
        assert heat.shape == (2, 2)
        assert heat.min() >= 0
        assert heat.max() <= 1
    checked(tmp_path / "page" / "index.html")


def test_every_sentence_follows_from_the_fact_it_names(images, tmp_path):
    runs = [finished_run(tmp_path / f"run{i}", images, i, 0.7, lr=0.1 * (i % 2)) for i in range(4)]
    facts = analyse(runs, "test")
    assert json.loads(json.dumps(facts)) == facts
    assert facts == analyse(runs, "test")  # the same seed, the same facts
    assert {arm: len(row["runs"]) for arm, row in facts["arms"].items()} == {
        "test_resnet, frozen (lr 0.0)": 2,
        "test_resnet, frozen (lr 0.1)": 2,
    }
    for row in facts["sentences"]:
        evidence = row["evidence"]
        assert evidence["kind"] in ("strong", "moderate", "none", "measured")
        known = [*numbers(lookup(facts, row["key"])), *numbers(evidence.get("numbers", {})), evidence.get("n", 0)]
        known += [100 * x for x in known]
        bare = re.sub(
            r"\(lr 0\.\d\)|95 %|after Holm's correction over \d+|\d+(?=px| px)|0 to 255|image-\d+", "", row["text"]
        )
        bare = re.sub(r"images/\S+|\w+/\w+\.jpg|all \d+", "", bare)
        said = [abs(float(x)) for x in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", bare)]
        for x in said:
            near = any(
                abs(x - abs(y)) <= max(0.051, 0.51 if x == int(x) else 0) for y in (*known, *(100 * y for y in known))
            )
            assert near or x in (0.001, facts["n"], len(facts["pairs"])), (x, row)


def numbers(fact):
    if isinstance(fact, (dict, list)):
        return [x for inner in (fact.values() if isinstance(fact, dict) else fact) for x in numbers(inner)]
    return [fact] if isinstance(fact, (int, float)) else []


def test_pointers_survive_names_with_slashes():
    facts = {"arms": {"timm/resnet~50.a1": {"x": [1, 2]}}}
    assert lookup(facts, pointer("arms", "timm/resnet~50.a1", "x", 1)) == 2


def test_runs_that_cannot_be_analysed_together(images, tmp_path):
    one, other = (finished_run(tmp_path / f"run{i}", images, i) for i in range(2))
    with pytest.raises(RocLabError, match=r"each seed cuts its own val images: evaluate them on test"):
        analyse([one, other], "val")
    assert analyse([one, other], decided=False)["split"] == "test"
    with pytest.raises(RocLabError, match="given twice"):
        analyse([one, one])
    with pytest.raises(RocLabError, match="choose val or test"):
        analyse([one], "train")

    elsewhere = finished_run(tmp_path / "elsewhere", make_images(tmp_path / "more", each=25))
    with pytest.raises(RocLabError, match="evaluated on other test images"):
        analyse([one, elsewhere], "test")
    shutil.rmtree(tmp_path / "more" / "sky")
    two_classes = finished_run(tmp_path / "two", tmp_path / "more")
    with pytest.raises(RocLabError, match="has other classes"):
        analyse([one, two_classes], "test")

    (other.path / "training.json").unlink()
    with pytest.raises(RocLabError, match=r"run1: its training was not finished; go on with --resume"):
        analyse([one, other])


def test_missing_and_damaged_predictions(images, tmp_path):
    one, other = (finished_run(tmp_path / f"run{i}", images, 0, lr=i) for i in range(2))
    table = other.path / "predictions.csv"
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))

    def put(changed):
        with open(table, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(changed)

    put([row for row in rows if row[0] != "test"])
    with pytest.raises(RocLabError, match=r"has no test rows: run `roclab vision evaluate .*run1 --split test` first"):
        analyse([one, other], "test")
    facts = analyse([one, other], decided=False)  # left to itself it takes val, and says so
    assert facts["split"] == "val"
    assert "run1 among others has not" in facts["notes"][0]
    put(rows[:-1])
    with pytest.raises(RocLabError, match=r"run1/predictions.csv does not fit the run's split.json"):
        analyse([one, other], "test")
    put([*rows[:-1], [*rows[-1][:4], *["soon"] * 3]])
    with pytest.raises(RocLabError, match=r"is damaged .its test rows do not fit the run's classes"):
        analyse([one, other], "test")
    put([*rows[:-1], rows[-1][:4]])
    with pytest.raises(RocLabError, match=rf"is damaged .row {len(rows)} has not the columns of the first"):
        analyse([one, other], "test")
    table.unlink()
    with pytest.raises(RocLabError, match=r"predictions.csv is missing: run `roclab vision evaluate"):
        analyse([one, other], "test")


@pytest.mark.parametrize("garbage", [b"", b"garbage\n", b"\n\n", b"\xff\xfe\x00PNG", b"split,path\nval,x\n"])
def test_predictions_that_are_none_are_called_damaged(images, tmp_path, garbage):
    run = finished_run(tmp_path / "run", images)
    (run.path / "predictions.csv").write_bytes(garbage)
    for split in (None, "val"):
        with pytest.raises(
            RocLabError, match=r"run/predictions.csv is damaged \(.*\): delete it and run `roclab vision"
        ):
            analyse([run], split)
    with pytest.raises(RocLabError, match="is damaged"):
        evaluate(run, "test")  # the other split's rows are in it
    assert not (run.path / "test_opened.json").exists()
    assert (run.path / "predictions.csv").read_bytes() == garbage


def test_a_class_without_test_image_is_said_and_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    images = make_images(tmp_path / "all", each=10)
    for part, names in (("train", ("brick", "grass", "sky")), ("test", ("brick", "grass"))):
        for name in names:
            (tmp_path / "split" / part / name).mkdir(parents=True)
            for i, path in enumerate(sorted((images / name).iterdir())):
                if (i < 7) == (part == "train"):
                    shutil.copy(path, tmp_path / "split" / part / name)
    facts = analyse([finished_run(tmp_path / "run", tmp_path / "split")], "test")
    row = next(row for row in facts["hardest"] if row["class"] == "sky")
    assert (row["n"], row["share"], row["ci95"]) == (0, None, None)
    assert any("Nothing can be said of 1 of 3 classes" in s["text"] and "sky" in s["text"] for s in facts["sentences"])
    checked(write_page(facts, tmp_path / "page"))


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_all_right_and_all_wrong_have_their_page(images, tmp_path, accuracy):
    runs = [finished_run(tmp_path / f"run{i}", images, i, accuracy, lr=i) for i in range(2)]
    facts = analyse(runs, "test")
    checked(write_page(facts, tmp_path / "page"))
    assert facts["shared"]["all"]["count"] == (0 if accuracy else facts["n"])
    assert all(row["evidence"]["kind"] != "strong" for row in facts["sentences"] if row["key"].startswith("/pairs"))


def test_images_that_are_gone_or_changed_leave_a_page(images, tmp_path):
    run = finished_run(tmp_path / "run", images, 0, 0.8)  # above chance, or nothing would be explained
    facts = analyse([run], "test")
    gone, changed = (tmp_path / "images" / facts["images"][str(i)]["path"] for i in facts["losses"][:2])
    gone.unlink()
    Image.new("RGB", (40, 40)).save(changed)
    facts = analyse([run], "test")
    assert len(facts["covariates"]["missing"]) == 2
    page = write_page(facts, tmp_path / "page")
    checked(page)
    assert "the image is not here" in page.read_text(encoding="utf-8")
    assert "2 of 12 images are not where the runs had them" in page.read_text(encoding="utf-8")
    for row in facts["covariates"]["measures"].values():
        assert row["n"] == sum(group["n"] for group in row["groups"]) == 10
    figure = next(c for f, c in read_json(page.parent / "errors.json")["captions"].items() if f == "covariates.png")
    assert "quarters of the 10 test images that are where the runs had them (2 of 12 are not)" in figure
    assert len(list((page.parent / "thumbs").glob("*.jpg"))) == len(facts["images"]) - 2
    done = roclab("vision", "errors", run.path, "--no-heat-maps", "--out", tmp_path / "page")
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "note: 2 of 12 images are not where the runs had them, or have changed, "
        f"{facts['covariates']['missing'][0]} first: left out of what is measured on images; --data-root says where "
        "they are\n"
    )
    assert any("no heat maps" in note for note in facts["notes"])  # this run has no checkpoint either
    (tmp_path / "images").rename(tmp_path / "moved")
    assert len(analyse([run], "test")["covariates"]["missing"]) == 12
    assert len(analyse([run], "test", data_root=tmp_path / "moved")["covariates"]["missing"]) == 2


def test_names_are_shown_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    images = make_images(tmp_path / "images", each=12)
    odd = '<script>alert("1")<&\'x %_$'
    (images / "sky").rename(images / odd)
    facts = analyse([finished_run(tmp_path / "<b>run&", images, 0, 0.4)], "test")
    page = write_page(facts, tmp_path / "page")
    checked(page)
    text = page.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;&amp;" in text
    assert "&lt;b&gt;run&amp;" in text
    assert not re.search(r"https?://", text)


def test_thumbnails_are_made_for_the_images_shown_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("ROCLAB_CACHE", str(tmp_path / "cache"))
    run = finished_run(tmp_path / "run", make_images(tmp_path / "images", each=150), 0, 0.2)
    facts = analyse([run], "test")
    checked(write_page(facts, tmp_path / "page"))
    assert sum(facts["shared"]["wrong_by"][1:]) > 60
    assert len(list((tmp_path / "page" / "thumbs").iterdir())) == len(facts["images"]) < 50


def test_a_page_is_made_anew_and_nothing_else_is_touched(images, tmp_path):
    page = tmp_path / "page"
    page.mkdir()  # an empty folder is free
    write_page(analyse([finished_run(tmp_path / "bad", images, 0, 0.0)], "test"), page)
    older = set(read_json(page / "errors.json")["files"])
    for folder in ("figures", "thumbs"):
        (page / folder / "mine.jpg").write_bytes(b"mine")
    (page / "notes.png").write_bytes(b"mine")
    (tmp_path / "outside.jpg").write_bytes(b"mine")
    record = read_json(page / "errors.json")
    astray = ["../outside.jpg", "thumbs/../../outside.jpg", "notes.png", 3]
    (page / "errors.json").write_text(json.dumps(record | {"files": [*record["files"], *astray]}), encoding="utf-8")

    checked(write_page(analyse([finished_run(tmp_path / "good", images, 0, 1.0)], "test"), page))
    newer = set(read_json(page / "errors.json")["files"])
    assert older - newer  # a network without errors shows fewer images
    there = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    assert there == newer | {"errors.json", "index.html", "notes.png", "figures/mine.jpg", "thumbs/mine.jpg"}
    assert (tmp_path / "outside.jpg").exists()


@pytest.mark.parametrize("record", [None, "not JSON", "[]", '{"captions": {}}'])
def test_a_folder_that_is_no_page_is_left_alone(tmp_path, record):
    holiday = tmp_path / "holiday"
    (holiday / "thumbs").mkdir(parents=True)
    (holiday / "thumbs" / "beach.jpg").write_bytes(b"mine")
    if record is not None:
        (holiday / "errors.json").write_text(record, encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(RocLabError, match="holiday exists and is not a page of `roclab vision errors`: choose another"):
        write_page({}, holiday)
    for other in (holiday / "thumbs" / "beach.jpg", holiday / "new" / ".."):
        with pytest.raises(RocLabError, match="is not a page"):
            write_page({}, other)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_runs_own_folder_is_refused_before_the_analysis(images, tmp_path):
    run = finished_run(tmp_path / "run", images).path
    (run / "figures").mkdir()
    (run / "figures" / "test.png").write_bytes(b"the run's")
    (run / "predictions.csv").unlink()  # the analysis would stop at this
    done = roclab("vision", "errors", run, "--out", run)
    assert done.returncode == 2
    assert done.stderr == f"roclab: {run} exists and is not a page of `roclab vision errors`: choose another --out\n"
    assert (run / "figures" / "test.png").read_bytes() == b"the run's"


def test_a_page_that_cannot_be_written_leaves_the_older_one(images, tmp_path, monkeypatch):
    facts = analyse([finished_run(tmp_path / "run", images, 0, 0.5)], "test", decided=False)
    page = tmp_path / "page"
    write_page(facts, page)
    before = {path: path.read_bytes() for path in page.rglob("*") if path.is_file()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("roclab.report.folders.write_json", full)  # the disk is the outside here
    with pytest.raises(RocLabError, match=r"cannot write the page to .*: No space left on device"):
        write_page(facts, page)
    assert {path: path.read_bytes() for path in page.rglob("*") if path.is_file()} == before


def test_twenty_runs_have_one_page(images, tmp_path):
    runs = [finished_run(tmp_path / f"run{i}", images, i % 5, 0.5 + i // 5 / 10, lr=i // 5) for i in range(20)]
    facts = analyse([VisionRun.open(run.path) for run in runs])
    assert len(facts["runs"]) == 20
    assert len(facts["arms"]) == 4
    assert len(facts["pairs"]) == 6
    assert all(len(pair["mcnemar"]) == 5 for pair in facts["pairs"])
    checked(write_page(facts, tmp_path / "page"))


def test_what_an_arm_of_several_seeds_is_called_wrong_on_is_what_its_pictures_show(images, tmp_path):
    """Both are read from the mean probabilities: with two seeds one may be right, and the arm is right or wrong."""
    runs = [finished_run(tmp_path / f"run{i}", images, i % 2, 0.6, drawn=i, lr=i // 2) for i in range(4)]
    facts = analyse(runs, "test", decided=False)

    def is_wrong(image, arm):
        about = facts["images"][str(image)]
        return about["predictions"][arm]["class"] != about["true"]

    pair = facts["pairs"][0]
    shown = [(i, pair[side], pair[other]) for side, other in ("ab", "ba") for i in pair[f"only_{side}_wrong"]]
    assert shown
    assert all(is_wrong(i, loser) and not is_wrong(i, winner) for i, loser, winner in shown)
    assert all(any(is_wrong(i, arm) for arm in facts["arms"]) for i in facts["losses"])
    assert all(is_wrong(i, arm) for i in facts["shared"]["by_all"] for arm in facts["told"])
    for row in facts["confused"]:
        for i in row.get("images", ()):
            about = facts["images"][str(i)]
            assert {row["a"], row["b"]} - {about["true"]} & {p["class"] for p in about["predictions"].values()}
    assert "mean probabilities of its runs" in write_page(facts, tmp_path / "page").read_text(encoding="utf-8")


def test_covariates_of_images_with_known_answers(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (300, 400), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "sharp.png")
    Image.fromarray(noise).resize((40, 30)).resize((400, 300)).save(tmp_path / "soft.png")
    Image.new("L", (200, 100), 51).save(tmp_path / "flat.png")
    sharp, soft, flat = (measure(tmp_path / f"{name}.png") for name in ("sharp", "soft", "flat"))
    assert sharp["megapixels"] == pytest.approx(0.12)
    assert sharp["sharpness"] > 20 * soft["sharpness"]
    assert (flat["sharpness"], flat["brightness"]) == (0.0, 51.0)

    (tmp_path / "annotations" / "trimaps").mkdir(parents=True)
    (tmp_path / "annotations" / "xmls").mkdir()
    trimap = np.full((10, 10), 2, dtype=np.uint8)
    trimap[:3] = 1
    trimap[3:5] = 3
    Image.fromarray(trimap).save(tmp_path / "annotations" / "trimaps" / "flat.png")
    size, box = "<width>200</width><height>100</height>", "<xmin>10</xmin><ymin>20</ymin><xmax>60</xmax><ymax>60</ymax>"
    (tmp_path / "annotations" / "xmls" / "flat.xml").write_text(
        f"<annotation>{size}<bndbox>{box}</bndbox></annotation>"
    )
    assert annotated(tmp_path, tmp_path / "flat.png") == {"animal": pytest.approx(0.4), "head": pytest.approx(0.1)}
    assert annotated(tmp_path, tmp_path / "sharp.png") == {"animal": None, "head": None}


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    done = roclab("vision", "errors", tmp_path / "nowhere", "--out", tmp_path / "page")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        f"roclab: {tmp_path / 'nowhere'} is not a run folder: there is no such folder"
    ]
    assert not (tmp_path / "page").exists()
    help_text = roclab("vision", "errors", "--help").stdout.replace("\n", " ")
    assert "Example: roclab vision errors" in help_text
