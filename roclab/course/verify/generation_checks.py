"""The checks of `generate`: greedy texts token by token, sampling by how often each token is drawn."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from roclab.course.verify.cases import CASES, Dice
from roclab.course.verify.judge import Check, Verdict, numeric
from roclab.course.verify.reference import Array, Reference

SIGNATURE = {"max_length": 50, "temperature": 1.0, "top_k": 50, "top_p": 0.9, "do_sample": True}


@lru_cache
def end_token() -> int:
    """The token that greedy decoding of the case `end` gives third."""
    case = CASES["end"]
    return int(Reference(case.config, case.weights).greedy(case.ids, 8)[0, -1])


def generation_checks() -> list[Check]:
    case, end = CASES["generation"], CASES["end"]
    greedy = {"max_length": 14, "do_sample": False}

    def ended(R: type[Reference]) -> Array:
        return R(end.config | {"eos_token_id": end_token()}, end.weights).greedy(end.ids, 14)

    def read_ended(value: Any) -> list[Array]:
        row, eos = list(value[0]), end_token()
        last = row.index(eos, end.ids.shape[1]) if eos in row[end.ids.shape[1] :] else len(row)
        if set(row[last + 1 :]) <= {0, eos}:  # padding behind the end is allowed
            row = row[: last + 1]
        return [np.asarray([row]), np.asarray([[*row, eos]])]  # with the end token or without

    def read_second(value: Any) -> list[Array]:
        row, eos, prompt = list(value[1]), end_token(), case.ids.shape[1]
        if eos in row[prompt:]:
            row = row[: row.index(eos, prompt) + 1]  # behind it may stand anything
        return [np.asarray([row]), np.asarray([[*row, eos]])]  # with the end token or without

    def judge_defaults(value: Any) -> Verdict:
        row, prompt = value[0], CASES["dice"].ids[0].tolist()
        if len(row) != 50:
            return Verdict(
                False, None, f"{len(row)} tokens", "generation: max_length is 50 by default, the prompt counted", True
            )
        if row[: len(prompt)] != prompt:
            return Verdict(
                False, None, f"begins with {row[:3]}", "generation: the result must begin with the prompt", True
            )
        return Verdict(True)

    def judge_signature(value: dict[str, Any]) -> Verdict:
        given, wanted = value["defaults"], SIGNATURE
        wrong = [f"{n} is {given[n]!r}, not {d!r}" for n, d in wanted.items() if n in given and given[n] != d]
        if not value["catches_all"]:
            wrong += [f"{n} is missing" for n in wanted if n not in given]
        said = ", ".join(wrong)
        return Verdict(not wrong, None, said, f"generate's arguments are the handout's: {said}", True)

    def judge_anew(value: list) -> Verdict:
        hint = "two calls draw the same tokens: generate must not seed (torch.manual_seed), or it does not draw"
        return Verdict(value[0] != value[1], None, "twice the same text", hint, True)

    return [
        Check(
            "generation: the signature",
            "generation",
            "signature",
            {"wanted": list(SIGNATURE)},
            ", ".join(f"{n}={d!r}" for n, d in SIGNATURE.items()),
            judge_signature,
        ),
        numeric(
            "generation: greedy",
            "generation",
            "generate",
            {"case": "generation", "changes": {}, "options": greedy},
            lambda R: R(case.config, case.weights).greedy(case.ids, 14),
            "the likeliest token each time, 14 in all",
            "generation with do_sample=False does not take the likeliest next token",
            tolerance=0,
        ),
        numeric(
            "generation: the end token",
            "generation",
            "generate",
            {"case": "end", "changes": {"eos_token_id": end_token()}, "options": greedy},
            ended,
            "it stops at eos_token_id",
            "generation must stop at eos_token_id",
            tolerance=0,
            read=read_ended,
        ),
        numeric(
            "generation: each row to its own end",
            "generation",
            "generate",
            {"case": "generation", "changes": {"eos_token_id": end_token()}, "options": greedy},
            lambda R: R(case.config | {"eos_token_id": end_token()}, case.weights).greedy(case.ids[1:], 14),
            "the second row goes on after the first has met eos_token_id",
            "generation must go on until every row has met eos_token_id",
            tolerance=0,
            read=read_second,
        ),
        Check(
            "generation: default arguments",
            "generation",
            "generate",
            {"case": "dice", "changes": {}, "options": {}},
            "50 tokens, the prompt first",
            judge_defaults,
        ),
        _draws(
            "do_sample",
            1.0,
            61,
            1.0,
            "tokens drawn by their probabilities",
            "generation with do_sample=True does not draw by the probabilities",
        ),
        Check(
            "generation: drawn anew",
            "generation",
            "drawn_twice",
            {"case": "dice"},
            "two calls with do_sample=True differ",
            judge_anew,
        ),
        _draws(
            "temperature", 2.0, 61, 1.0, "softmax(logits / 2)", "generation: the temperature must divide the logits"
        ),
        _draws("top_k", 1.0, 3, 1.0, "the three likeliest only", "generation: top_k must keep the k likeliest tokens"),
        _draws(
            "top_p",
            1.0,
            61,
            0.7,
            "probabilities 0.4, 0.25, 0.2: the fewest that reach 0.7",
            "generation: top_p must keep the fewest tokens that reach it",
        ),
        _draws(
            "a small top_p", 1.0, 61, 0.3, "the likeliest alone", "generation: top_p must always keep the likeliest"
        ),
    ]


def _draws(name: str, temperature: float, top_k: int, top_p: float, expects: str, hint: str) -> Check:
    case = CASES["dice"]
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    assert isinstance(case, Dice)

    def expected(R: type[Reference]) -> Array:
        model = R(case.config, case.weights)
        return model.draw(model.logits(case.ids)[0, -1], **options)

    def read(value: dict[str, int]) -> list[Array]:
        counts = np.zeros(case.config["vocab_size"])
        for token, count in value.items():
            counts[int(token)] = count
        return [counts / counts.sum()]

    def gap(drawn: Array, p: Array) -> float:
        """The largest difference of a frequency from its probability; 1 if a token was drawn that must not be."""
        return 1.0 if drawn.shape != p.shape or (drawn[p == 0] > 0).any() else float(np.abs(drawn - p).max())

    arguments = {"case": "dice", "rows": 500, "times": 8, "options": options}
    return numeric(
        f"generation: {name}",
        "generation",
        "draws",
        arguments,
        expected,
        f"{expects}; 4,000 draws",
        hint,
        tolerance=0.04,
        read=read,
        gap=gap,
    )
