"""`lm verify` and `tokenizer lab`: the JSON that they print, and the files that the lab leaves."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.golden.common import Answer, assert_same, files, read_record, roclab, structure


def ask(folder: Path) -> list[Answer]:
    # Without Qwen3's tokenizer, which only some machines have.
    nowhere = {"ROCLAB_QWEN3": "", "ROCLAB_SHARED_DATA": folder / "nowhere", "HF_HOME": folder / "hub"}
    lab = ("tokenizer", "lab", "--student-id", "31415926", "--out", "lab", "--json")
    return roclab(("lm", "verify", "--json"), lab, cwd=folder, **nowhere)


def verify(answers: list[Answer], folder: Path) -> dict[str, Any]:
    told = answers[0].json
    checks = [f"{check['component']}: {check['name']}" for check in told["checks"]]
    return {"json": structure(told), "checks": checks, "passed": [told["checks_passed"], told["checks_total"]]}


def tokenizer_lab(answers: list[Answer], folder: Path) -> dict[str, Any]:
    told = answers[1].json
    ids = {
        tokenizer: {name: variant["ids"] for name, variant in facts["variants"].items()}
        for tokenizer, facts in told["tokenizers"].items()
    }
    return {"json": structure(told), "files": files(folder / "lab"), "ids": ids}


PARTS = {"lm verify": verify, "tokenizer lab": tokenizer_lab}


def now() -> dict[str, Any]:
    with TemporaryDirectory() as name:
        answers = ask(Path(name))
        return {part: look(answers, Path(name)) for part, look in PARTS.items()}


@pytest.fixture(scope="module")
def asked(smollm_path, tmp_path_factory) -> tuple[list[Answer], Path]:
    pytest.importorskip("nbclient")
    folder = tmp_path_factory.mktemp("tools")
    return ask(folder), folder


@pytest.mark.parametrize("part", PARTS)
def test_what_is_printed_and_written_is_the_same(asked, part):
    assert_same(PARTS[part](*asked), read_record("tools")[part])
