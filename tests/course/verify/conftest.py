from __future__ import annotations

import json

import pytest

from roclab.course.verify.checker import verify
from roclab.course.verify.limits import Limits
from roclab.course.verify.sandbox import Sandbox


@pytest.fixture(scope="package")
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def check(sandbox, tmp_path):
    """Verify a source text."""

    def run(source: str | bytes, name: str = "roclm_model.py", training: bool = False, **limits):
        file = tmp_path / name
        file.write_bytes(source if isinstance(source, bytes) else source.encode())
        report = verify(file, Limits(**limits), sandbox=sandbox, training=training)
        json.dumps(report, allow_nan=False)
        return report

    return run


def quick(values, every: int) -> list:
    """As parameters: every so many in `make test`, the others in `make test-slow`."""
    return [pytest.param(v, marks=[pytest.mark.slow] if i % every else []) for i, v in enumerate(values)]


def failed(report) -> dict[str, dict]:
    return {c["name"]: c for c in report["checks"] if not c["passed"]}
