"""Qwen3's real tokenizer, for the tests of tokenizers and chats."""

from __future__ import annotations

from pathlib import Path

import pytest

from roclab.lm.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def qwen_folder(shared_data) -> Path:
    return shared_data / "qwen3-tokenizer"


@pytest.fixture(scope="session")
def qwen(qwen_folder) -> Tokenizer:
    return Tokenizer.from_directory(qwen_folder)
