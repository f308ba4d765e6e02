"""The tokenizer lab: facts, sentences and pictures for odd IDs, and the notebook executed."""

from __future__ import annotations

import json

import pytest

from roclab.core.exceptions import RocLabError
from roclab.core.sentences import Sentence, lookup
from roclab.course.tokenizer_lab import figures, notebook
from roclab.course.tokenizer_lab.analysis import (
    QWEN,
    SMOLLM,
    analyse,
    check_student_id,
    open_tokenizer,
    open_tokenizers,
    readable,
)
from roclab.course.tokenizer_lab.bpe_trace import Tracer
from roclab.course.tokenizer_lab.sentences import as_markdown, paragraphs, sentences

from ..lm.build import assert_one_line, roclab, write_tokenizer

IDS = [
    "31842067",
    "jmüller42",
    "J Smith 7",
    "👩‍🎓x",
    "<|im_start|>",
    "$\\alpha$|`<b>*",
    "a\u0308b",
    "٣٤",
    "x" * 64,
    "7",
]


@pytest.fixture(scope="module")
def tracers(smollm_path) -> dict[str, Tracer]:
    return {name: Tracer(tokenizer) for name, tokenizer in open_tokenizers()[0].items()}


@pytest.mark.parametrize("student_id", IDS)
def test_facts_sentences_and_pictures_of_odd_ids(tracers, student_id):
    check_student_id(student_id)
    facts = {name: analyse(student_id, tracer) for name, tracer in tracers.items()}
    for name, fact in facts.items():
        tokenizer = tracers[name].tokenizer
        assert fact["ids"] == tokenizer.encode(student_id, bos=False)
        for variant in fact["variants"].values():
            assert variant["ids"] == tokenizer.encode(variant["text"], bos=False)
        for start, length in fact["coverage"]["single"]:
            assert len(tokenizer.encode(fact["normalized"][start : start + length], bos=False)) == 1
        rows = [(label, v["tokens"], v["ids"]) for label, v in fact["variants"].items()]
        for picture in (
            figures.token_strips(student_id, rows),
            figures.merge_tree(student_id, tracers[name].trace(student_id)),
            figures.coverage_triangle(student_id, fact["normalized"], fact["coverage"]),
        ):
            assert picture.startswith(b"\x89PNG")
    said = sentences(student_id, facts)
    for sentence in said:
        assert Sentence.read(json.loads(json.dumps(sentence.json()))) == sentence
        lookup({"tokenizers": facts}, sentence.key)
    topics = {"The split", "Merges", "Spaces", "Prefixes", "Letter case"}
    assert all(topics <= {s.topic for s in said if s.key.startswith(f"/tokenizers/{name}/")} for name in tracers)


def texts(tracers, student_id: str, name: str = SMOLLM) -> str:
    return "\n".join(s.text for s in sentences(student_id, {name: analyse(student_id, tracers[name])}))


def test_digits_are_cut_by_the_pre_tokenizer(tracers):
    text = texts(tracers, "3184")
    assert "SmolLM2 makes 4 tokens of the ID, 4 characters (4 bytes): 3 · 1 · 8 · 4." in text
    assert "All 3 cuts (3 · 1, 1 · 8 and 8 · 4) are made before any merging, by step 1" in text
    assert "sets every digit apart" in text
    assert "So a number costs as many tokens as it has digits" in text
    assert "none of the 48,900 rules joins two digits, and the vocabulary has no token of two or more digits" in text
    assert "No merge happens inside the ID" in text
    assert (
        "with “id:” and a space before it and in a sentence, step 1 of its pre-tokenizer (Digits) cuts in front" in text
    )
    assert "the ID’s own tokens stay the same" in text
    assert "what stands before the ID is id · : with “id:” and ID · : with “ID:”" in text
    assert "The ID itself has no letter of which there are a small and a capital one" in text


def test_letters_are_merged_and_a_space_reaches_in(tracers):
    text = texts(tracers, "student")
    assert "SmolLM2 makes 1 token of the ID, 7 characters (7 bytes): student (id " in text
    assert "With a space before it the ID becomes ␣student: the rule ␣ + " in text
    assert "So ␣student reaches over the ID’s edge" in text
    assert "(rank " in text
    assert "In upper case the ID has" in text


def test_what_happens_at_the_id_s_edge_is_a_cut_or_a_merge(tracers):
    """Of letters and digits mixed: a space joins by a rule, a digit at the end is cut off."""
    variants = analyse("JSmith42", tracers[SMOLLM])["variants"]
    joined, cut = variants["with a space before it"]["edges"][0], variants["with a space behind it"]["edges"][0]
    assert (joined["left"], joined["right"], joined["makes"]) == ("␣", "J", "␣J")
    assert tracers[SMOLLM].ranks["Ġ", "J"] == joined["rank"]
    assert (cut["left"], cut["right"], cut["cause"]) == ("2", "␣", "pre-tokenizer")
    assert len(variants["in a sentence"]["edges"]) == 2


def test_the_analysis_is_paragraphs_and_an_id_acts_as_no_markup(tracers):
    said = sentences("*1*", {name: analyse("*1*", tracer) for name, tracer in tracers.items()})
    parts = paragraphs(said)
    assert len({(part.tokenizer, part.topic) for part in parts}) == len(parts)
    text = as_markdown(said)
    assert text.count("### ") == len(tracers) + (len(tracers) > 1)  # each, and both together
    assert r"\* · 1 · \*" in text
    assert "**Spaces.** With a space before it the ID" in text


def test_a_control_token_s_name_is_text_and_said_to_be(tracers):
    text = texts(tracers, "<|im_start|>")
    assert "holds the name of a control token (<|im_start|>)" in text
    assert tracers[SMOLLM].tokenizer.control["<|im_start|>"] not in analyse("<|im_start|>", tracers[SMOLLM])["ids"]


def test_normalization_is_said(shared_data, tracers):
    assert "normalized to äb" in texts(tracers, "a\u0308b", QWEN)
    assert "normalized" not in texts(tracers, "a\u0308b", SMOLLM)


def test_tokens_are_readable():
    assert readable("Ġid") == "␣id"
    assert readable("Ã¼") == "ü"
    assert readable("Ã") == "⟨c3⟩"
    assert readable("Ċ") == "\\n"


@pytest.mark.parametrize(
    ("student_id", "words"),
    [("", "empty"), (" \u3000", "empty"), ("x" * 10_000, "10,000"), ("a\nb", "line breaks"), ("a\x00", "control"),
     ("a\ud800", "control"), ("\ufdd0", "control")],
)  # fmt: skip
def test_an_id_that_is_none(student_id, words):
    with pytest.raises(RocLabError, match=words):
        check_student_id(student_id)


def test_any_folder_s_tokenizer_opens_and_a_missing_one_is_said(tmp_path):
    write_tokenizer(tmp_path / "t")
    assert open_tokenizer(str(tmp_path / "t")).encode("the")
    with pytest.raises(RocLabError):
        open_tokenizer(str(tmp_path / "nowhere"))


# ── The notebook ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("student_id", ["31842067", "'\"\\\n${x}", '"""'])
def test_the_parameters_cell_holds_the_id(student_id):
    pages = notebook.build(student_id)
    (cell,) = [c for c in pages.cells if "parameters" in c.metadata.get("tags", [])]
    names: dict = {}
    exec(cell.source, names)
    assert names["STUDENT_ID"] == student_id
    assert names["QWEN3"] is None
    assert notebook.build(student_id) == pages


def test_the_page_escapes_what_cells_print():
    from nbformat import v4

    output = v4.new_output("stream", text="<script>")
    pages = v4.new_notebook(cells=[v4.new_code_cell("print('<b>')", outputs=[output]), v4.new_markdown_cell("<i>")])
    page = notebook.to_html(pages, "<title>")
    assert "<script>" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;" in page


@pytest.fixture(scope="module")
def lab(smollm_path, tmp_path_factory):
    """The command, once: an ID with an umlaut and a space, Qwen3 stood in for by a small tokenizer."""
    folder = tmp_path_factory.mktemp("lab")
    write_tokenizer(folder / "small")
    done = roclab("tokenizer", "lab", "--student-id", "Jür 42", "--out", str(folder / "out"), "--qwen3",
                  str(folder / "small"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    return folder / "out", done


def test_the_command_writes_the_lab(lab):
    out, done = lab
    assert {path.name for path in out.iterdir()} == {
        "Tokenizer_Lab.ipynb", "Tokenizer_Lab.html", "lab.md", "lab.json", "figures",
    }  # fmt: skip
    content = json.loads((out / "lab.json").read_text(encoding="utf-8"))
    assert content["student_id"] == "Jür 42"
    assert set(content["tokenizers"]) == {SMOLLM, QWEN}
    assert all((out / picture).read_bytes().startswith(b"\x89PNG") for picture in content["figures"])
    text = (out / "lab.md").read_text(encoding="utf-8")
    for sentence in content["sentences"]:
        assert sentence["text"] in done.stdout
        assert sentence["text"].partition(",")[0] in text.replace("\\", "")


def test_the_notebook_was_executed_and_says_what_lab_json_says(lab):
    import nbformat

    out, _ = lab
    pages = nbformat.read(out / "Tokenizer_Lab.ipynb", as_version=4)
    nbformat.validate(pages)
    code = [cell for cell in pages.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    printed = "".join(output.get("data", {}).get("text/markdown", "") for output in outputs).replace("\\", "")
    for sentence in json.loads((out / "lab.json").read_text(encoding="utf-8"))["sentences"]:
        assert sentence["text"] in printed
    # lengths, two strips, two sentences; the tree and the triangle of SmolLM2 alone: the stand-in merges nothing here
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 7


def test_the_lab_can_be_handed_in(lab):
    """No path of this machine in anything that is handed in, and a page that needs nothing from elsewhere."""
    out, _ = lab
    for name in ("Tokenizer_Lab.ipynb", "Tokenizer_Lab.html", "lab.md", "lab.json"):
        assert str(out.parent) not in (out / name).read_text(encoding="utf-8")
    page = (out / "Tokenizer_Lab.html").read_text(encoding="utf-8")
    assert "http://" not in page
    assert "https://" not in page


def test_qwen3_that_is_not_there_is_said_and_an_old_lab_is_replaced_whole(smollm_path, tmp_path):
    out = tmp_path / "lab"
    (out / "figures").mkdir(parents=True)
    for name in ("lab.md", "figures/old.png"):
        (out / name).write_text("old")
    older = {"student_id": "3", "sentences": [], "files": ["lab.md", "figures/old.png"]}
    (out / "lab.json").write_text(json.dumps(older))
    nothing = {"ROCLAB_SHARED_DATA": str(tmp_path / "none"), "HF_HOME": str(tmp_path / "hub"), "ROCLAB_QWEN3": ""}
    done = roclab("tokenizer", "lab", "--student-id", "31", "--out", str(out), "--json", **nothing)
    content = json.loads(done.stdout)
    assert set(content["tokenizers"]) == {SMOLLM}
    assert "was not there" in content["missing"][QWEN]
    assert "was not there" in done.stderr
    for name in ("lab.md", "Tokenizer_Lab.ipynb", "Tokenizer_Lab.html"):
        assert "was not there" in (out / name).read_text(encoding="utf-8")
    assert not (out / "figures" / "old.png").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name != "hub"] == ["lab"]


def test_a_lab_that_fails_leaves_nothing_and_the_old_one_stays(smollm_path, tmp_path):
    out = tmp_path / "lab"
    out.mkdir()
    (out / "lab.md").write_text("old")
    (out / "lab.json").write_text('{"student_id": "3", "sentences": []}')
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("import os; os._exit(1)")  # a user's own start-up file that ends the kernel
    done = roclab("tokenizer", "lab", "--student-id", "31", "--out", str(out), IPYTHONDIR=str(tmp_path / "ipython"))
    assert_one_line(done, "kernel does not run here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ipython", "lab"]
    assert (out / "lab.md").read_text() == "old"


def test_a_cell_that_fails_is_named(tmp_path):
    from nbformat import v4

    pages = v4.new_notebook(cells=[v4.new_code_cell("1"), v4.new_code_cell("1 / 0")])
    with pytest.raises(RocLabError, match="cell 2 fails: ZeroDivisionError"):
        notebook.execute(pages, tmp_path, {})


def test_mistakes_at_the_terminal_are_one_line(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("")
    for arguments, word in (
        (("--student-id", "", "--out", "x"), "empty"),
        (("--student-id", "x" * 10_000, "--out", "x"), "at most"),
        (("--student-id", "31", "--out", str(tmp_path / "full")), "is not a lab"),
        (("--student-id", "31", "--out", str(tmp_path / "full" / "letter.txt")), "is not a lab"),
        (("--student-id", "31", "--out", str(tmp_path / "x"), "--qwen3", str(tmp_path / "none")), "no such file"),
    ):
        assert_one_line(roclab("tokenizer", "lab", *arguments), word)
