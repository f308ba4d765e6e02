"""Markdown -> HTML, .tex and PDF. pandoc and Typst come as Python packages: no TeX and no system program is needed."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_write
from roclab.core.progress import track
from roclab.report.kit import TEMPLATES

# What the Markdown is read as. Text is taken as it stands: no clever quotes, citations, raw HTML or TeX.
FORMAT = "markdown-smart-citations-raw_html-raw_tex-latex_macros-example_lists-emoji-native_divs-native_spans"
HTML = ("--standalone", "--default-image-extension=svg", "--mathml",
        "--embed-resources", "--toc", "--toc-depth=1", "--section-divs", "--number-sections",
        "--variable=document-css=false", f"--css={TEMPLATES / 'report.css'}")  # fmt: skip
TEX = ("--standalone", "--default-image-extension=pdf",
       "--variable=geometry:a4paper,margin=2.4cm", "--variable=fontsize:10pt", "--variable=colorlinks",
       "--number-sections", f"--include-in-header={TEMPLATES / 'preamble.tex'}")  # fmt: skip
TYPST = ("--standalone", "--default-image-extension=svg", f"--template={TEMPLATES / 'report.typ'}")


def require() -> None:
    """Raise `RocLabError` unless the extra `report` is installed."""
    if missing := [name for name in ("pypandoc", "typst") if find_spec(name) is None]:
        raise RocLabError(f"{missing[0]} is missing: python -m pip install 'roclab[report]'")


def convert(folder: Path) -> list[str]:
    """Make report.html, report.tex and report.pdf from report.md in `folder` (its figures beside it).

    Returns warnings: characters that a format cannot show. Raises `RocLabError` if a format cannot be made.
    """
    source = (folder / "report.md").read_text(encoding="utf-8").replace(" %", "\u00a0%")  # on the number's line
    for make in track((_write_html, _write_tex, _write_pdf), "pages"):
        make(source, folder)
    return _letters_without_glyph(source)


def _write_html(source: str, folder: Path) -> None:
    html = _pandoc(source, "html5", folder, *HTML)
    html = html.replace("<table", '<div class="table"><table').replace("</table>", "</table></div>")
    atomic_write(folder / "report.html", html)


def _write_tex(source: str, folder: Path) -> None:
    about = (
        "% Compile with lualatex, which takes letters of every script that its font has.\n% !TeX program = lualatex\n"
    )
    atomic_write(folder / "report.tex", about + _pandoc(source, "latex", folder, *TEX))


def _pandoc(source: str, to: str, folder: Path, *options: str) -> str:
    import pypandoc

    try:
        return pypandoc.convert_text(
            source, to, format=FORMAT, extra_args=[*options, f"--resource-path={folder}"], sandbox=False
        ).replace("\r\n", "\n")
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise RocLabError(f"pandoc could not make {to} of the report: {reason}") from None


def _write_pdf(source: str, folder: Path) -> None:
    import typst

    typ: Any = _pandoc(source, "typst", folder, *TYPST).encode()  # its own type wants the root to be of the same type
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fonts of the list that are not installed
            atomic_write(folder / "report.pdf", typst.compile(typ, root=str(folder), timestamp=0))
    except typst.TypstError as error:
        raise RocLabError(f"Typst could not make the PDF: {error.message}") from None


def _letters_without_glyph(source: str) -> list[str]:
    """Warnings for scripts that the fonts of report.tex or of the PDF do not have."""
    foreign = sorted({c for c in source if c.isalpha() and ord(c) > 0x24F})  # not Latin
    # Typst's own fonts cover Latin, Greek, Cyrillic and Hebrew
    without = [c for c in foreign if ord(c) > 0x5FF and ord(c) not in _covered()]
    warned = (
        (foreign, "report.tex needs a font that has {}: name it with \\setmainfont, then run lualatex"),
        (without, "report.pdf shows boxes for {}: install a font that has them, such as Noto Sans CJK"),
    )
    return [words.format("".join(letters[:20])) for letters, words in warned if letters]


@cache
def _covered() -> frozenset[int]:
    """The letters of all fonts that Typst finds on this system."""
    import typst
    from fontTools.ttLib import TTFont  # comes with matplotlib

    letters: set[int] = set()
    for path in sorted({font.path for font in typst.Fonts().fonts() if font.path}):
        try:
            letters |= set(TTFont(path, fontNumber=0, lazy=True).getBestCmap() or ())
        except Exception:  # a font that cannot be read shows nothing
            continue
    return frozenset(letters)
