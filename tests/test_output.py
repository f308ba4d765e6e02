"""What commands print for scripts."""

import json

import numpy as np

from roclab.cli.output import print_json


def test_json_is_one_plain_line(capsys, tmp_path):
    print_json({"a": float("nan"), "b": [1.5, float("-inf")], "c": np.array([1, np.inf]), "d": "Ü\n🙂", "e": tmp_path})
    line = capsys.readouterr().out
    assert line.isascii()
    assert line.count("\n") == 1
    assert json.loads(line) == {"a": None, "b": [1.5, None], "c": [1, None], "d": "Ü\n🙂", "e": str(tmp_path)}
