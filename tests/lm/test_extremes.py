"""Logits and settings at the edge of numbers: greedy's token, a draw among what is left, or one line."""

from __future__ import annotations

import math

import pytest
import torch

from roclab.core.exceptions import RocLabError
from roclab.lm.engine.scheduler import Engine
from roclab.lm.generate import complete
from roclab.lm.settings import SamplingParams

from .speaker import Speaker, tokenizer

HUGE = 3e38


class Logits(Speaker):
    """The same logits everywhere."""

    def __init__(self, row: list[float]):
        super().__init__([0])
        self.row = torch.tensor(row)
        self.config.vocab_size = len(row)

    def forward(self, work, *, scratch=False):
        return self.row.expand(len(super().forward([(s, ids, n) for s, ids, n in work])), -1)


def said(row: list[float], **settings) -> list[int]:
    prompts = [[1], [1, 2]]  # alone in a batch of two
    params = SamplingParams(max_new_tokens=3, ignore_eos=True, **settings)
    return [i for result in complete(Logits(row), tokenizer(), prompts, params) for i in result.token_ids]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1e-45}, {"temperature": 1e-310}, {"temperature": -0.0}, {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 0.0}, {"temperature": 1.0, "min_p": 1.0}, {"temperature": 1e30, "top_k": 1},
        {"temperature": 1e-30, "top_p": 1e-30},
    ],
)  # fmt: skip
def test_settings_that_leave_one_token_choose_greedy_s(settings):
    assert set(said([-1.0, -2.0, -0.5, -3.0], **settings)) == {2}


@pytest.mark.parametrize(
    "settings", [{"temperature": 1e30}, {"temperature": 1.0, "top_k": 10**9}, {"temperature": 1e308}]
)
def test_settings_that_leave_all_tokens_draw_among_them(settings):
    assert set(said([0.0, 1.0, 0.5, -math.inf], **settings)) <= {0, 1, 2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "row",
    [[0.0, math.nan, 1.0], [math.inf, 0.0, 0.0], [-math.inf] * 3, [math.nan] * 3, [math.inf, -math.inf, math.nan]],
)
def test_logits_that_are_no_numbers_are_refused(row, temperature):
    with pytest.raises(RocLabError, match="not a number"):
        said(row, temperature=temperature)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9, "min_p": 0.1}])
@pytest.mark.parametrize("row", [[HUGE, 0.0, -math.inf], [HUGE, -HUGE, 0.0], [-1.0, -math.inf, -HUGE]])
def test_huge_logits_are_numbers(row, settings):
    assert set(said(row, **settings)) == {0}


@pytest.mark.parametrize(("vocabulary", "wanted", "given"), [(60, 100, 60), (3, 4, 3), (3, 0, 0)])
def test_more_log_probabilities_than_there_are_tokens(vocabulary, wanted, given):
    row = [0.0] * (vocabulary - 1) + [-math.inf]
    engine = Engine(Logits(row))
    request = engine.submit([1], SamplingParams(max_new_tokens=1, logprobs=wanted))
    engine.step()
    token = request.tokens.popleft()
    assert len(token.top_logprobs) == given
    assert token.logprob == pytest.approx(-math.log(vocabulary - 1))
