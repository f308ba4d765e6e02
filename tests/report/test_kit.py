"""The reporting kit: text that comes from outside never acts as markup, and a folder of ours is made as a whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roclab.core.exceptions import RocLabError
from roclab.core.sentences import Sentence, about, escape, interval, listed, lookup, pointer, strength
from roclab.report.folders import FolderKind
from roclab.report.kit import Document, code, plain, render, tidy

PAGES = FolderKind("page", "roclab make page", "page.json", ("facts",), r"\w+\.txt|figures/\w+\.png")
ODD = '<b>"*_|`$\\ & \n# x'


def test_markdown_and_html_templates_escape_what_they_are_given(tmp_path):
    (tmp_path / "page.md").write_text(
        "{{ x }} {{ [x, x]|listed }}\n{{ table([x], 'l', [[x]]) }}\n{{ code(x) }}", "utf-8"
    )
    text = render(tmp_path / "page.md", x=ODD)
    shown = r'\<b\>"\*\_\|\`\$\\ \& \# x'
    assert text.startswith(f"{shown} {shown} and {shown}\n| {shown} |\n|:---")
    assert text.endswith(f"```\n{ODD}\n```")
    (tmp_path / "page.html").write_text("<p>{{ x }}</p>", "utf-8")
    assert render(tmp_path / "page.html", x=ODD) == "<p>&lt;b&gt;&#34;*_|`$\\ &amp; \n# x</p>"


def test_a_name_that_a_template_misspells_is_an_error(tmp_path):
    (tmp_path / "page.md").write_text("{{ facts.nothing }}", "utf-8")
    with pytest.raises(Exception, match="nothing"):
        render(tmp_path / "page.md", facts={})


@given(st.text(alphabet="a`\n ", max_size=30))
def test_a_code_block_ends_where_it_should(text):
    fence, *inside, last = code(text).split("\n")
    assert fence == last
    assert "\n".join(inside) == text
    assert not any(line.startswith(fence) for line in inside)


def test_a_document_numbers_and_remembers_its_figures_and_tables(tmp_path):
    doc = Document()
    figure = "![{{ doc.next('Figure', 'R1: x_y') }} It. {{ doc.source }}](a.png)"
    template = f"{figure} {{{{ doc.next('Table', 'R2') }}}} {{{{ doc.count('Figure') }}}}"
    (tmp_path / "page.md").write_text(template, "utf-8")
    assert render(tmp_path / "page.md", doc=doc) == r"![Figure 1. It. *R1: x\_y.*](a.png) Table 1. 1"
    assert doc.sources == [("Figure 1", "R1: x_y"), ("Table 1", "R2")]


def test_tables_get_widths_and_code_stays_as_it_is():
    block = "```\n| a |\n|---|\n\n\n\n| b |\n```"
    text = tidy(f"{block}\n\n\n\n| a | {'long ' * 20}| c |\n|:-|-:|:-:|\n| 1 | 2 | 3 |\n")
    assert text.startswith(f"{block}\n\n| a |")
    rule = text.split("\n")[-3]
    assert rule.startswith("|:--|---")
    assert 30 < rule.count("-") < 60
    assert rule.endswith("-:|:-:|")
    assert plain(escape("a_b [1, 2] | x \\ *y*")) == "a_b [1, 2] | x \\ *y*"


def make(out, names, mark=True):
    with PAGES.new(out) as (work, record):
        for name in names:
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_text(name, "utf-8")
        record |= {"facts": len(names)} if mark else {}


def test_a_folder_replaces_its_own_files_and_leaves_the_users(tmp_path):
    out = tmp_path / "out"
    make(out, ["a.txt", "figures/a.png"])
    assert json.loads((out / "page.json").read_text("utf-8")) == {"facts": 2, "files": ["a.txt", "figures/a.png"]}
    assert out.stat().st_mode & 0o077  # as open to others as any folder made here
    for name in ("mine.txt", "figures/mine.png"):
        (out / name).write_text("mine", "utf-8")
    make(out, ["b.txt"])
    there = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert there == ["b.txt", "figures/mine.png", "mine.txt", "page.json"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_of_something_else_and_an_astray_record_do_no_harm(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "page.json").write_text('{"files": []}', "utf-8")
    with pytest.raises(RocLabError, match="exists and is not a page of `roclab make page`: choose another --out"):
        make(out, ["a.txt"])
    (tmp_path / "beside.txt").write_text("mine", "utf-8")
    astray = ["../beside.txt", "figures/../../beside.txt", "thesis.doc", 3]
    (out / "page.json").write_text(json.dumps({"facts": 1, "files": astray}), "utf-8")
    (out / "thesis.doc").write_text("mine", "utf-8")
    make(out, ["a.txt"])
    assert (tmp_path / "beside.txt").exists()
    assert (out / "thesis.doc").exists()


def test_after_an_error_everything_is_as_before(tmp_path):
    out = tmp_path / "out"

    def fail(error):
        with PAGES.new(out) as (work, _):
            (work / "a.txt").write_text("half", "utf-8")
            raise error

    with pytest.raises(RocLabError, match=r"cannot write the page to .*out: No space left"):
        fail(OSError(28, "No space left on device"))
    assert list(tmp_path.iterdir()) == []
    make(out, ["a.txt"])
    with pytest.raises(ValueError, match="mistake"):
        fail(ValueError("mistake"))
    assert (out / "a.txt").read_text("utf-8") == "a.txt"
    assert sorted(path.name for path in out.iterdir()) == ["a.txt", "page.json"]


def test_a_sentence_takes_its_figures_from_the_fact_it_names():
    facts = {"split": "test", "arms": {"a/b~c": {"share": 0.5, "n": 4, "ci95": [0.2, 0.8], "runs": ["x"], "ok": True}}}
    said = about(facts, pointer("arms", "a/b~c"), "Half.", "moderate", p=0.02)
    assert lookup(facts, said.key) == facts["arms"]["a/b~c"]
    assert said.evidence.numbers == {"share": 0.5, "ci95": [0.2, 0.8], "p": 0.02}
    assert (said.evidence.n, said.evidence.split, said.claims) == (4, "test", True)
    assert Sentence.read(json.loads(json.dumps(said.json()))) == said


@pytest.mark.parametrize(
    ("value", "kind", "numbers"),
    [
        ("Only text.", "computed", {}),
        ({"text": "x", "evidence": "strong", "numbers": [1.0]}, "strong", {}),
        ({"text": "x", "evidence": {"rate": 0.5}}, "computed", {"rate": 0.5}),
    ],
)
def test_sentences_of_version_0_1_are_read(value, kind, numbers):
    said = Sentence.read(value)
    assert (said.evidence.kind, said.evidence.numbers) == (kind, numbers)


def test_strength_and_words():
    assert [strength(p) for p in (0.001, 0.04, 0.05, None)] == ["strong", "moderate", "none", "none"]
    assert strength(0.001, interval_shows=False) == "none"
    assert interval([0.25, 1]) == "[25.0, 100.0]"
    assert interval([-0.02, 0.04], sign="+") == "[-2.0, +4.0]"
    assert [listed("abc"[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert listed("abcd", most=2) == "a, b and 2 more"
