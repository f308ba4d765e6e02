"""Wilson's interval against scipy's, a textbook case, and nothing at all."""

import pytest

from roclab.core.statistics import sign_test, wilson


@pytest.mark.parametrize(("passed", "n"), [(0, 1), (1, 1), (0, 8), (3, 8), (8, 8), (90, 248)])
def test_wilson_is_scipy_s(passed, n):
    from scipy.stats import binomtest

    interval = binomtest(passed, n).proportion_ci(0.95, method="wilson")
    assert wilson(passed, n) == pytest.approx([interval.low, interval.high], abs=1e-12)


def test_wilson_interval_of_a_textbook_case():
    # 81 of 263 (Newcombe 1998, table I, method 3): 0.2553 to 0.3662
    assert wilson(81, 263) == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert wilson(10, 10)[1] == 1.0


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (6, 15), (10, 0), (7, 7)])
def test_the_sign_test_is_the_binomial_one(better, worse):
    from scipy.stats import binomtest

    expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert sign_test(better, worse) == pytest.approx(expected)


def test_a_kind_of_question_without_a_score_has_no_interval():
    from roclab.course.study.report import row

    assert row([])["ci95"] is None
