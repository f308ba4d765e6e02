"""Markdown -> HTML, .tex and PDF. pandoc and Typst come as Python packages: no TeX and no system program is needed."""

from __future__ import annotations

import re
import unicodedata
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_write
from roclab.report.page import FORMAT

if TYPE_CHECKING:
    from collections.abc import Iterable

TEMPLATES = Path(__file__).parent / "templates"

# What LaTeX knows as mathematics, for pdflatex; letters it does not know it is told of one by one.
MATHS = {
    "≤": r"\le", "≥": r"\ge", "≈": r"\approx", "≠": r"\ne", "−": "-", "→": r"\to", "←": r"\leftarrow", "∞": r"\infty",
    "√": r"\surd", "∑": r"\sum", "∈": r"\in", "′": "'", "·": r"\cdot", "α": r"\alpha", "β": r"\beta", "γ": r"\gamma",
    "δ": r"\delta", "ε": r"\varepsilon", "θ": r"\theta", "λ": r"\lambda", "μ": r"\mu", "π": r"\pi", "ρ": r"\rho",
    "σ": r"\sigma", "τ": r"\tau", "φ": r"\varphi", "χ": r"\chi", "ω": r"\omega", "Δ": r"\Delta", "Σ": r"\Sigma",
    "Ω": r"\Omega", "▁": r"\_", "␣": r"\_", "✓": r"\surd", "✗": r"\times",
}  # fmt: skip


def require() -> None:
    """Raise `RocLabError` unless the extra `report` is installed."""
    try:
        import pypandoc  # noqa: F401
        import typst  # noqa: F401
    except ImportError as error:
        raise RocLabError(f"{error.name} is missing: python -m pip install 'roclab[report]'") from None


def render(folder: Path) -> list[str]:
    """Make report.html, report.tex and report.pdf from report.md in `folder` (its figures beside it).

    Returns warnings: characters that a format cannot show. Raises `RocLabError` if a format cannot be made.
    """
    source = (folder / "report.md").read_text(encoding="utf-8")
    html = _pandoc(source, "html5", folder, "--standalone", "--embed-resources", "--toc", "--toc-depth=1",
                   "--section-divs", "--number-sections", "--variable=document-css=false",
                   f"--css={TEMPLATES / 'report.css'}")  # fmt: skip
    html = html.replace("<table", '<div class="table"><table').replace("</table>", "</table></div>")
    atomic_write(folder / "report.html", html)

    tex = _pandoc(source, "latex", folder, "--standalone", "--variable=geometry:a4paper,margin=2.4cm",
                  "--variable=fontsize:10pt", "--variable=colorlinks", "--number-sections")  # fmt: skip
    preamble = (TEMPLATES / "preamble.tex").read_text(encoding="utf-8") + _unknown_letters(tex)
    atomic_write(folder / "report.tex", tex.replace("\\begin{document}", preamble + "\\begin{document}", 1))

    typ = _pandoc(source, "typst", folder, "--standalone", f"--template={TEMPLATES / 'report.typ'}")
    found = _pdf(typ, folder)
    return found + _letters_without_glyph(source)


def _pandoc(source: str, to: str, folder: Path, *options: str) -> str:
    import pypandoc

    try:
        return pypandoc.convert_text(
            source, to, format=FORMAT, extra_args=[*options, f"--resource-path={folder}"], sandbox=False
        ).replace("\r\n", "\n")
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise RocLabError(f"pandoc could not make {to} of the report: {reason}") from None


def _pdf(typ: str, folder: Path) -> list[str]:
    import typst

    source = folder / ".report.typ"
    source.write_text(typ, encoding="utf-8")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fonts of the list that are not installed
            atomic_write(folder / "report.pdf", typst.compile(str(source), root=str(folder), timestamp=0))
    except typst.TypstError as error:
        raise RocLabError(f"Typst could not make the PDF: {error.message}") from None
    finally:
        source.unlink(missing_ok=True)
    return []


def _unknown_letters(tex: str) -> str:
    """Definitions for pdflatex of the characters beyond Latin that the text holds: mathematics where there is a sign,
    else the code point in a small box. (xelatex and lualatex, with a font that has them, show the letters.)"""
    letters = sorted({c for c in tex if ord(c) > 0xFF})
    if not letters:
        return ""
    lines = ["\\ifPDFTeX\n\\makeatletter\n"]
    for c in letters:
        code = f"{ord(c):04X}"
        shown = f"\\ensuremath{{{MATHS[c]}}}" if c in MATHS else f"\\fbox{{\\tiny U+{code}}}"
        if unicodedata.combining(c):
            shown = ""
        lines.append(
            f"\\@ifundefined{{u8:\\detokenize{{{c}}}}}{{\\DeclareUnicodeCharacter{{{code}}}"
            f"{{\\texorpdfstring{{{shown}}}{{?}}}}}}{{}}\n"
        )
    return "".join([*lines, "\\makeatother\n\\fi\n"])


def _letters_without_glyph(source: str) -> list[str]:
    """Warnings for scripts that the PDF's or pdflatex's fonts do not have."""
    foreign = {c for c in source if c.isalpha() and ord(c) > 0x17F and c not in MATHS}
    found = []
    if foreign:
        shown = "".join(sorted(foreign)[:20])
        found.append(
            f"pdflatex shows boxes for {shown}: compile report.tex with xelatex or lualatex and a font that has them"
        )
    if without := sorted(c for c in foreign if ord(c) > 0x5FF and not _has_glyph(c)):
        found.append(
            f"report.pdf shows boxes for {''.join(without[:20])}: install a font that has them, such as Noto Sans CJK"
        )
    return found


def _has_glyph(letter: str) -> bool:
    """Whether a font that Typst finds on this system has the letter. (Its own cover Latin, Greek, Cyrillic, Hebrew.)"""
    return any(ord(letter) in _coverage(path) for path in _font_files())


_fonts: dict[str, set[int]] = {}


def _coverage(path: str) -> set[int]:
    from fontTools.ttLib import TTFont  # comes with matplotlib

    if path not in _fonts:
        try:
            _fonts[path] = set(TTFont(path, fontNumber=0, lazy=True).getBestCmap() or ())
        except Exception:  # a font that cannot be read shows nothing
            _fonts[path] = set()
    return _fonts[path]


def _font_files() -> Iterable[str]:
    import typst

    return sorted({font.path for font in typst.Fonts().fonts() if font.path})


def figures_of(markdown: str) -> list[str]:
    """The picture files that a report's Markdown shows."""
    return re.findall(r"\]\((figures/[^)]+)\)\{", markdown)
