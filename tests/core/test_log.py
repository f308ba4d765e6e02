"""Messages and progress: what is shown where."""

import logging
import os
import pty
import subprocess
import sys

import pytest

from roclab.core import log
from roclab.core.progress import track


@pytest.fixture
def shown(capsys: pytest.CaptureFixture):
    """Messages as the command line shows them; the logger is left as it was."""
    handlers, level, propagate = list(log.ROOT.handlers), log.ROOT.level, log.ROOT.propagate
    log.show_messages()
    log.show_messages()  # twice, and each line still comes once
    yield lambda: capsys.readouterr().err
    log.ROOT.handlers, log.ROOT.propagate = handlers, propagate
    log.ROOT.setLevel(level)


def test_messages_are_plain_lines_and_warnings_say_so(shown):
    logger = logging.getLogger("roclab.somewhere")
    logger.info("reading %d images", 3)
    logger.warning("a.jpg is damaged")
    logger.debug("not shown")
    assert shown() == "reading 3 images\nwarning: a.jpg is damaged\n"


def test_a_program_that_imports_roclab_sees_warnings_only():
    code = (
        "import logging; from roclab.core import runs\n"
        "logger = logging.getLogger('roclab.x'); logger.info('no'); logger.warning('yes')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "yes\n"


def test_a_full_disk_is_an_error_like_any_other(shown):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs Linux's /dev/full")
    handler = log.log_file("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        logging.getLogger("roclab.somewhere").info("too much")
    log.ROOT.removeHandler(handler)


def test_short_work_is_not_mentioned(shown):
    assert list(track(iter("abc"), "reading")) == ["a", "b", "c"]
    assert shown() == ""


def test_long_work_without_a_terminal_is_told_in_lines(shown, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("roclab.core.progress.LINE_EVERY", -1)
    list(track("b", "fetching", 2, done=1))
    list(track(iter("a"), "reading"))
    assert shown() == "fetching: 2 of 2, 0 s left\nreading: 1\n"


def test_a_loop_that_is_left_early_leaves_nothing_behind(shown, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("roclab.core.progress.LINE_EVERY", -1)

    def fail():
        for item in track("abc", "broken"):
            if item == "b":
                raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert shown() == "broken: 1 of 3, 0 s left\n"
    list(track("a", "next"))  # would not be shown inside another loop
    assert shown() == "next: 1 of 1, 0 s left\n"


def on_a_terminal(code: str) -> bytes:
    """What a program writes to stderr where that is a terminal."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # the terminal is closed
            break
        if not block:
            break
        shown += block
    os.close(ours)
    assert done.wait() == 0, shown
    return shown


def test_a_bar_is_drawn_on_a_terminal_once_it_takes_long_and_messages_go_above_it():
    shown = on_a_terminal(
        "import logging, time\n"
        "from roclab.core import log, progress\n"
        "log.show_messages()\n"
        "assert list(progress.track([1], 'quick')) == [1]\n"
        "progress.BAR_AFTER = 0.05\n"
        "for item in progress.track(range(5), 'slow work'):\n"
        "    time.sleep(0.1)\n"
        "    if item == 3: logging.getLogger('roclab.x').warning('look here')\n"
        "    for inner in progress.track(range(2), 'inside'): time.sleep(0.06)\n"
    )
    assert b"slow work" in shown
    assert b"quick" not in shown
    assert b"inside" not in shown
    assert b"warning: look here\r\n" in shown
