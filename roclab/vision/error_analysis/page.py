"""The page of the error analysis: one folder that opens from the disk, with nothing fetched from anywhere.

index.html, errors.json (all facts, the figures' captions, and the files made), figures/*.png,
thumbs/*.jpg (of the images shown alone, made one at a time)
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

from roclab.core.exceptions import DataError, RocLabError
from roclab.core.files import atomic_write, file_sha256, write_json
from roclab.core.progress import track
from roclab.vision.error_analysis.analysis import amount, interval, p_value, percent
from roclab.vision.error_analysis.figures import draw
from roclab.vision.error_analysis.style import STYLE

RECORD = "errors.json"  # a folder that holds it is a page, and may be made anew
_OURS = re.compile(r"(figures|thumbs)/[\w-]+\.(png|jpg)")
THUMBNAIL = 320  # px, longer side
HEAT = 224  # px
PAIRS = 6  # whose galleries are shown
ROWS = 15  # of a table
METHODS = """Intervals of shares are Wilson's (1927), of differences between two runs on the same images the paired
bootstrap over images, of differences between two groups of images Newcombe's (1998). Two networks are compared by
McNemar's exact test (1947), what covering the hot and other places costs by Wilcoxon's (1945); a class is held
against all other images by the exact or permutation test of the mean; confused pairs by the binomial tail. P-values
of one kind of question are corrected by Holm (1979). Calibration is tested by consistency resampling (Vaicenavicius
et al. 2019). Heat maps are Grad-CAM (Selvaraju et al. 2017) on the last activation before pooling. Label doubts are
confident learning (Northcutt et al. 2021, cleanlab). A image counts once however many runs were judged on it."""
EVIDENCE = {
    "strong": "strong evidence",
    "moderate": "moderate evidence",
    "none": "not shown",
    "measured": "measured",
}


def write_page(facts: dict[str, Any], out: str | os.PathLike) -> Path:
    """Write the facts of `analyse` as a page into the folder `out`; returns the path of index.html, written last.

    An older page there is replaced: its files, which its errors.json names, and nothing else. A image that is not where
    it was, or has changed since, is said to be missing in its place.

    Raises `RocLabError` if `out` holds something else than a page.
    """
    out = Path(out).resolve()  # "new/.." is not there until "new" is, and then holds whatever it holds
    older = older_page(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # made aside, so that what is cut short leaves the older page whole and no file that no record names
        with tempfile.TemporaryDirectory(dir=out, prefix=".page.") as folder:
            work = Path(folder)
            figures = draw(facts, work / "figures")
            pictures = _thumbnails(facts, work / "thumbs")
            made = sorted(path.relative_to(work).as_posix() for path in work.glob("*/*"))
            captions = {figure["file"]: figure["caption"] for figure in figures.values()}
            write_json(work / RECORD, facts | {"captions": captions, "files": made})
            atomic_write(work / "index.html", _Page(facts, figures, pictures).html())
            for file in (*made, RECORD, "index.html"):
                (out / file).parent.mkdir(exist_ok=True)
                os.replace(work / file, out / file)
        for file in older - set(made):  # the hand-in packs the whole folder
            (out / file).unlink(missing_ok=True)
    except OSError as error:
        raise RocLabError(f"cannot write the page to {out}: {error.strerror}") from None
    return out / "index.html"


def older_page(out: str | os.PathLike) -> set[str]:
    """The figures and thumbnails of the page in the folder `out`, as its record names them; none without a page.

    Raises `RocLabError` if `out` holds something else than a page, so that nothing of the user's is written over.
    """
    out = Path(out).resolve()
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return set()
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or not {"sentences", "captions", "images"} <= record.keys():
        raise RocLabError(f"{out} exists and is not a page of `roclab vision errors`: choose another --out")
    files = record.get("files")  # the first pages had no such list: their files stay
    # a record that was edited must not lead out of the two folders
    return {file for file in files if _OURS.fullmatch(str(file))} if isinstance(files, list) else set()


def _thumbnails(facts: dict[str, Any], folder: Path) -> dict[str, str]:
    """Small pictures of the images spoken of and of the heat maps: number (or number and arm) -> file name."""
    made: dict[str, str] = {}
    heats: dict[str, list[dict[str, Any]]] = {}
    for row in facts["decided"]["shown"]:
        heats.setdefault(str(row["image"]), []).append(row)
    for number, image in track(facts["images"].items(), "thumbnails", len(facts["images"])):
        path = Path(facts["root"]) / image["path"]
        try:
            if file_sha256(path) != image["sha256"]:
                continue
            made |= _pictures(facts, number, path, image["sha256"][:16], heats.get(number, []), folder)
        except (OSError, DataError):
            continue
    return made


def _pictures(
    facts: dict[str, Any], number: str, path: Path, name: str, heats: list[dict[str, Any]], folder: Path
) -> dict[str, str]:
    from roclab.vision.data.images import open_image

    image = open_image(path, at_least=THUMBNAIL)
    made = {number: f"{name}.jpg"}
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    _save_jpeg(small, folder / made[number])
    for row in heats:
        arm = facts["decided"]["arms"].get(row["arm"])
        if arm:
            made[f"{number} {row['arm']}"] = file = f"{name}-heat-{list(facts['arms']).index(row['arm'])}.jpg"
            _save_jpeg(_heat_over(image, row["heat"], arm["resize"], arm["crop"]), folder / file)
    return made


def _save_jpeg(picture: Any, path: Path) -> None:
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=85)
    atomic_write(path, data.getvalue())


def _heat_over(image: Any, heat: list[list[float]], resize: int, crop: int) -> Any:
    """The part of the image that the network sees (shorter side to `resize`, centre crop) under its heat map."""
    import matplotlib
    import numpy as np
    from PIL import Image

    scale = resize / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    seen = image.crop((left, top, left + crop, top + crop)).resize((HEAT, HEAT))
    values = Image.fromarray((255 * np.array(heat, dtype=np.float32)).astype(np.uint8))
    smooth = np.asarray(values.resize((HEAT, HEAT), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    colour = matplotlib.colormaps["inferno"](smooth)[..., :3]
    grey = np.asarray(seen.convert("L"), dtype=np.float32)[..., None] / 255
    alpha = 0.15 + 0.55 * smooth[..., None]
    mixed = (1 - alpha) * (0.4 * grey + 0.6 * np.asarray(seen, dtype=np.float32) / 255) + alpha * colour
    return Image.fromarray((255 * mixed.clip(0, 1)).astype(np.uint8))


def _signed(points: float) -> str:
    """A whole number of points with its sign; none where it rounds to 0."""
    return f"{points:+.0f}".replace("-", "\u2212") if abs(points) >= 0.5 else "0"


def _bound(text: str) -> str:
    """Figures keep their sign of per cent and their p on the line."""
    return text.replace(" %", "\u00a0%").replace("p = ", "p\u00a0=\u00a0").replace("p &lt; ", "p\u00a0&lt;\u00a0")


class _Page:
    """Puts the page together; every text that comes from outside goes through `escape`."""

    def __init__(self, facts: dict[str, Any], figures: dict[str, dict[str, str]], pictures: dict[str, str]) -> None:
        self.facts, self.figures, self.pictures = facts, figures, pictures

    def html(self) -> str:
        facts = self.facts
        title = f"Errors on {facts['n']} {facts['split']} images"
        sections = [
            ("summary", "In short", self.summary()),
            ("runs", "The runs", self.runs()),
            ("classes", "Classes and confusions", self.classes()),
            ("losses", "Top losses", self.losses()),
            ("shared", "Errors of all, errors of one", self.shared()),
            ("calibration", "Calibration: does it know when it is wrong?", self.calibration()),
            ("decided", "What decided", self.decided()),
            ("images", "What the image has to do with it", self.covariates()),
            ("labels", "Labels worth a second look", self.labels()),
            ("methods", "How this was computed", self.methods()),
        ]
        nav = "".join(f'<a href="#{key}">{escape(name.split(":")[0])}</a>' for key, name, _ in sections)
        body = "".join(f'<section id="{key}"><h2>{escape(name)}</h2>{text}</section>' for key, name, text in sections)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><header><h1>{escape(title)}</h1>"
            f"<p>{len(facts['runs'])} run{'s' * (len(facts['runs']) > 1)}, {len(facts['classes'])} classes: "
            f"{escape(', '.join(facts['arms']))}</p><nav>{nav}</nav></header><main>{body}</main></body></html>\n"
        )

    # ---- pieces

    def sentences(self, *starts: str, only: tuple[str, ...] = ()) -> str:
        rows = [
            f'<li><span class="mark {row["evidence"]}">{EVIDENCE[row["evidence"]]}</span>{_bound(escape(row["text"]))} '
            f"<code>{escape(row['key'])}</code></li>"
            for row in self.facts["sentences"]
            if row["key"].split("/")[1] in starts and (not only or row["evidence"] in only)
        ]
        return f'<ul class="sentences">{"".join(rows)}</ul>' if rows else ""

    def figure(self, name: str) -> str:
        if name not in self.figures:
            return ""
        made = self.figures[name]
        return (
            f'<figure class="plot"><img src="figures/{made["file"]}" alt="{escape(made["alt"])}">'
            f"<figcaption>{escape(made['caption'])}</figcaption></figure>"
        )

    def table(self, heads: list[str], rows: list[list[str]], note: str = "", text: int = 2) -> str:
        """`rows` hold plain text, escaped here; the first `text` columns are words, the others figures."""

        def line(cells: list[str], tag: str) -> str:
            words = (f"<{tag}{' class=t' * (i < text)}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells))
            return f"<tr>{''.join(words)}</tr>"

        head, body = line(heads, "th"), "".join(line(row, "td") for row in rows)
        note = f'<p class="note">{escape(note)}</p>' if note else ""
        return f'<div class="table"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>{note}'

    def picture(self, key: str, alt: str) -> str:
        if key in self.pictures:
            return f'<img loading="lazy" src="thumbs/{self.pictures[key]}" alt="{escape(alt)}">'
        return '<div class="gone">the image is not here</div>'

    def gallery(self, numbers: list[int], arms: list[str] | None = None) -> str:
        if not numbers:
            return '<p class="note">None.</p>'
        cards = []
        for number in numbers:
            image = self.facts["images"][str(number)]
            cards.append(
                f'<figure class="card">{self.picture(str(number), image["true"])}<figcaption>'
                f"<b>{escape(image['true'])}</b>{self.calls(image, arms)}"
                f'<span class="file">{escape(Path(image["path"]).name)}, loss {image["loss"]:.2f}</span>'
                "</figcaption></figure>"
            )
        return f'<div class="gallery">{"".join(cards)}</div>'

    def calls(self, image: dict[str, Any], arms: list[str] | None) -> str:
        """What each arm calls the image; of many arms, how many call it what."""
        calls = {name: call for name, call in image["calls"].items() if arms is None or name in arms}
        if len(calls) > 4:
            votes = Counter(call["class"] for call in calls.values())
            lines = [(f"{count} of {len(calls)}", name, None) for name, count in votes.most_common(3)]
        else:
            lines = [(name, call["class"], call["probability"]) for name, call in calls.items()]
        out = []
        for who, what, p in lines:
            kind = "right" if what == image["true"] else "wrong"
            sure = "" if p is None else f" ({100 * p:.0f}\u00a0%)"
            out.append(
                f'<span class="call"><i>{escape(who)}</i> <span class="{kind}">{escape(what)}</span>{sure}</span>'
            )
        return "".join(out)

    # ---- sections

    def summary(self) -> str:
        facts = self.facts
        sections = [row["key"].split("/")[1] for row in facts["sentences"]]
        shown = self.sentences(*sections, only=("strong", "moderate"))
        silent = sum(row["evidence"] == "none" for row in facts["sentences"])
        care = (
            '<p class="care">These are test images. They explain the figures of a finished choice; whatever you change '
            "because of them cannot be judged on them again. While you still choose, look at "
            "<code>--split val</code>.</p>"
            if facts["split"] == "test"
            else ""
        )
        notes = "".join(f'<p class="care">{escape(note)}</p>' for note in facts["notes"])
        if missing := facts["covariates"]["missing"]:
            notes += (
                f'<p class="care">{len(missing)} of {facts["n"]} images are not where the runs had them (or have '
                f"changed), {escape(missing[0])} first: they are left out of what needs the image itself. "
                "<code>--data-root</code> says where they are.</p>"
            )
        none = '<p class="note">Nothing is shown beyond chance by these images.</p>'
        return (
            f'{self.sentences("arms")}<h3>What is shown</h3>{shown or none}<p class="note">{silent} further questions '
            f"have no answer in these images; each is marked “not shown” in its section. The code after a sentence is "
            f"the place of its fact in errors.json.</p>{care}{notes}"
        )

    def runs(self) -> str:
        rows = [
            [
                run["name"],
                run["arm"],
                str(run["seed"]),
                str(run["errors"]),
                percent(run["top1"]),
                interval(run["ci95"]["top1"]),
                percent(run["mean_per_class"]),
                f"{run['ece']:.3f}",
                f"{run['nll']:.3f}",
            ]
            for run in self.facts["runs"]
        ]
        heads = ["run", "model and strategy", "seed", "errors", "right", "95 % interval", "per class", "ECE", "loss"]
        return self.table(heads, rows, f"n = {self.facts['n']} images for every run; Wilson's interval.") + (
            self.sentences("pairs")
        )

    def classes(self) -> str:
        facts = self.facts
        hardest = [
            [
                row["class"],
                row["species"] or "",
                f"{amount(row['count'])} of {row['n']}",
                percent(row["share"]) if row["n"] else "no image",
                interval(row["ci95"]) if row["n"] else "",
                p_value(row["p"]) if row["n"] else "",
            ]
            for row in facts["hardest"]
        ]
        confused = [
            [
                f"{row['a']} / {row['b']}",
                amount(row["a_called_b"]),
                amount(row["b_called_a"]),
                f"{amount(row['count'])} of {row['n']}",
                interval(row["ci95"]),
                p_value(row["p"]),
            ]
            for row in facts["confused"][:ROWS]
        ]
        out = f"<h3>Hardest classes</h3>{self.sentences('hardest')}{self.figure('hardest')}"
        heads = ["class", "species", "right", "share", "95 % interval", "harder than the rest (Holm)"]
        out += f"<details><summary>All {len(hardest)} classes</summary>{self.table(heads, hardest)}</details>"
        out += f"<h3>Most confused pairs</h3>{self.sentences('confused')}{self.figure('confused')}"
        heads = ["pair", "first called second", "second called first", "both ways", "95 % interval", "Holm"]
        out += f"<details><summary>With intervals</summary>{self.table(heads, confused)}</details>" if confused else ""
        if groups := facts["species_groups"]:
            rows = [
                [kind, str(row["classes"]), f"{amount(row['count'])} of {row['n']}"]
                + ([percent(row["share"]), interval(row["ci95"])] if row["n"] else ["no image", ""])
                for kind, row in groups["kinds"].items()
            ]
            heads = ["species", "classes", "class right", "share", "95 % interval"]
            names = " and ".join(f"{kind}s" for kind in groups["kinds"])
            out += f"<h3>{escape(names.capitalize())}</h3>{self.sentences('species_groups')}{self.table(heads, rows)}"
        return out

    def losses(self) -> str:
        return (
            f'<p class="note">The {len(self.facts["losses"])} wrong images with the highest loss (mean over the runs, '
            f"in nats): the true class in bold, then what each calls it.</p>{self.gallery(self.facts['losses'])}"
        )

    def shared(self) -> str:
        facts = self.facts
        shared, units = facts["shared"], facts["shared"]["units"]
        if len(units) == 1:
            return '<p class="note">There is one run: give several to hold them against each other.</p>'
        count = int(shared["all"]["count"])
        some = f", {len(shared['by_all'])} shown" if count > len(shared["by_all"]) else ""
        each = "both" if len(units) == 2 else f"all {len(units)}"
        out = f"{self.sentences('shared')}{self.figure('shared')}<h3>Wrong with {each} ({count}{some})</h3>"
        out += self.gallery(shared["by_all"])
        pairs = sorted(facts["pairs"], key=lambda p: -sum(facts["arms"][p[side]]["share"] for side in "ab"))
        for pair in pairs[:PAIRS]:
            both = [pair["a"], pair["b"]]
            for side, (loser, winner) in (("a", both), ("b", both[::-1])):
                images = pair[f"only_{side}_wrong"]
                total = pair["a_wrong_b_right" if side == "a" else "b_wrong_a_right"]
                some = f", {len(images)} shown" if total > len(images) else ""
                out += f"<h3>{escape(loser)} wrong, {escape(winner)} right ({total}{some})</h3>"
                out += self.gallery(images, both)
        if len(pairs) > PAIRS:
            out += f'<p class="note">The {PAIRS} of {len(pairs)} pairs with the best accuracy.</p>'
        if not pairs:
            for name, images in shared["only"].items():
                out += f"<h3>{escape(name)} alone wrong ({shared['only_counts'][name]})</h3>{self.gallery(images)}"
        return out

    def calibration(self) -> str:
        rows = [
            [
                name,
                f"{row['ece']:.3f}",
                interval(row["ci95"], 1, 3),
                f"{row['ece_if_calibrated']:.3f}",
                f"{100 * row['gap']:+.1f}",
                interval(row["gap_ci95"]),
                p_value(row["p_holm"]),
            ]
            for name, row in self.facts["calibration"].items()
        ]
        heads = ["model and strategy", "ECE", "95 %", "if perfect", "confidence − accuracy", "95 %", "Holm"]
        note = (
            "ECE is never zero on a finite number of images: “if perfect” is what perfectly honest confidences would "
            "give here, and Holm's p how likely they would give this much."
        )
        return f"{self.sentences('calibration')}{self.figure('calibration')}{self.table(heads, rows, note)}"

    def decided(self) -> str:
        facts = self.facts["decided"]
        out = self.sentences("decided")
        if not facts["shown"]:
            return out + '<p class="note">No heat map was drawn.</p>'
        out += (
            '<p class="note">What each network sees (the centre crop), bright where it speaks for the class called '
            "(Grad-CAM, relative to the brightest place). “Covered” is how far that class's probability falls when the "
            "hottest quarter is covered.</p>"
        )
        order: dict[int, list[dict[str, Any]]] = {}
        for row in facts["shown"]:
            order.setdefault(row["image"], []).append(row)
        for number, rows in order.items():
            image = self.facts["images"][str(number)]
            cards = [
                f'<figure class="card">{self.picture(str(number), image["true"])}<figcaption><b>'
                f'{escape(image["true"])}</b><span class="file">{escape(Path(image["path"]).name)}: '
                f"{escape(rows[0]['kind'])}</span></figcaption></figure>"
            ]
            for row in rows:
                kind = "right" if row["called"] == image["true"] else "wrong"
                key = f"{number} {row['arm']}"
                cards.append(
                    f'<figure class="card">{self.picture(key, "heat map for " + row["called"])}<figcaption><i>'
                    f'{escape(row["arm"])}</i><span class="call"><span class="{kind}">{escape(row["called"])}</span> '
                    f'({100 * row["probability"]:.0f} %)</span><span class="file">covered: '
                    f"{_signed(-100 * row['drop_hot'])} points</span></figcaption></figure>"
                )
            out += f'<div class="gallery">{"".join(cards)}</div>'
        return out

    def covariates(self) -> str:
        found = self.facts["covariates"]
        out = self.sentences("covariates") + self.figure("covariates")
        if found["left_out"]:
            left = "; ".join(f"{name}: {why}" for name, why in found["left_out"].items())
            out += f'<p class="note">Left out: {escape(left)}.</p>'
        return out

    def labels(self) -> str:
        found = self.facts["label_errors"]
        out = self.sentences("label_errors")
        if found["images"]:
            lines = [
                [
                    Path(self.facts["images"][str(row["image"])]["path"]).name,
                    row["label"],
                    row["suggested"],
                    f"{row['p_label']:.2f}",
                    f"{row['p_suggested']:.2f}",
                    f"{row['agree']} of {len(self.facts['runs'])}",
                ]
                for row in found["images"]
            ]
            heads = ["file", "label", "called instead", "p(label)", "p(other)", "runs that agree"]
            out += self.gallery([row["image"] for row in found["images"]]) + self.table(heads, lines, text=3)
        return out

    def methods(self) -> str:
        where = "".join(f"<li>{escape(run['name'])}</li>" for run in self.facts["runs"])
        return (
            f"<p>{escape(METHODS)}</p><p>Random draws come from seed {self.facts['seed']}. Every figure of this page "
            f"is in errors.json, computed from the predictions in these run folders:</p><ul>{where}</ul>"
        )
