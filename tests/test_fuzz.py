"""A thousand damaged files (tests/fuzz.py)."""

import os
import signal
import time

import pytest

from . import fuzz


@pytest.mark.slow
def test_damaged_files_are_read_or_refused_in_one_line():
    assert fuzz.fuzz(0, 1000) == {}


def test_exceptions_signals_and_hangs_are_seen():
    """What finds nothing must be able to."""

    def case(number: int) -> None:
        if number == 1:
            raise KeyError("a bug")
        if number == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 3:
            time.sleep(60)

    worker = fuzz.Worker(case, seconds=5)
    found = [worker.run(number) for number in (0, 1, 2, 0, 3, 0)]
    worker.process.kill()
    assert [found[i] for i in (0, 3, 5)] == ["", "", ""]
    assert "KeyError: 'a bug'" in found[1]
    assert (found[2], found[4]) == ("the process ended with -11", "no end within 5 s")
