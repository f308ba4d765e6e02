"""The checks of `generate`: greedy texts token by token, sampling by how often each token is drawn."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from roclab.course.verify.cases import CASES
from roclab.course.verify.check import Check, Verdict, fault, model, numbers
from roclab.course.verify.reference import Array, Formulas

SIGNATURE = {"max_length": 50, "temperature": 1.0, "top_k": 50, "top_p": 0.9, "do_sample": True}


@lru_cache
def end_token() -> int:
    """The third token of the greedy text of the case `end`."""
    return int(model("end").greedy(CASES["end"].ids, 8)[0, -1])


def up_to_the_end(row: list[int], prompt: int, behind: tuple[int, ...] | None) -> list[Array]:
    """The row up to its end token, in both forms that are right: with that token and without. Only the tokens `behind`
    may follow it (None: any); if others do, the row stays as it is."""
    eos = end_token()
    if eos in row[prompt:]:
        last = row.index(eos, prompt)
        if behind is None or set(row[last + 1 :]) <= {*behind, eos}:
            row = row[: last + 1]
    return [np.asarray([row]), np.asarray([[*row, eos]])]


def default_fault(value: list[list[list[int]]]) -> Verdict | None:
    row, prompt = value[0][0], CASES["dice"].ids[0].tolist()
    if len(row) != 50:
        return fault(f"{len(row)} tokens", "generation: max_length is 50 by default, the prompt counted")
    if row[: len(prompt)] != prompt:
        return fault(f"begins with {row[:3]}", "generation: the result must begin with the prompt")
    return None


def signature_fault(value: dict[str, Any]) -> Verdict | None:
    given = value["defaults"]
    wrong = {n: repr(v) for n, v in given.items() if v not in (SIGNATURE[n], None)}
    wrong |= {n: "missing" for n in SIGNATURE if n not in given and not value["catches_all"]}
    said = ", ".join(f"{n} is {v}, not {SIGNATURE[n]!r}" for n, v in wrong.items())
    if not wrong and value["drawn"] and gap(frequencies(value["drawn"])[0], drawn({}, 1.0, 50, 0.9)) > 0.04:
        said = "without arguments it draws as with others: a default set inside is another, or sampling is wrong"
    return fault(said, f"generate's arguments are the handout's: {said}") if said else None


def same_text_fault(value: list[list[list[int]]]) -> Verdict | None:
    hint = "two calls draw the same tokens: generate must not seed (torch.manual_seed), or it does not draw"
    return None if value[0] != value[1] else fault("twice the same text", hint)


# ---- drawn tokens


def drawn(replaced: Formulas, temperature: float, top_k: int, top_p: float) -> Array:
    """The distribution of the token after the case `dice`, (V,)."""
    reference = model("dice", replaced)
    return reference.draw(reference.logits(CASES["dice"].ids)[0, -1], temperature, top_k, top_p)


def frequencies(value: dict[str, int]) -> list[Array]:
    counts = np.zeros(CASES["dice"].config["vocab_size"])
    for token, count in value.items():
        counts[int(token)] = count
    return [counts / counts.sum()]


def gap(found: Array, p: Array) -> float:
    """The largest difference of a frequency from its probability; 1 if a token was drawn that must not be."""
    return 1.0 if found.shape != p.shape or (found[p == 0] > 0).any() else float(np.abs(found - p).max())


def of_draws(title: str, options: tuple[float, int, float], expects: str, hint: str) -> Check:
    named = dict(zip(("temperature", "top_k", "top_p"), options, strict=True), do_sample=True)
    arguments = {"case": "dice", "rows": 500, "times": 8, "options": named}
    return Check(
        "generation", title, "draws", arguments, f"{expects}; 4,000 draws", f"generation{hint}",
        lambda replaced: drawn(replaced, *options), 0.04, read=frequencies, gap=gap)  # fmt: skip


def generation_checks() -> list[Check]:
    ids, end, ending = CASES["generation"].ids, CASES["end"].ids, {"eos_token_id": end_token()}

    def of_text(
        title: str, case: str, changes: dict[str, Any], ids: Array, expects: str, hint: str,
        read: Callable[[Any], list[Array]] = lambda value: [numbers(value[0])],
    ) -> Check:  # fmt: skip
        arguments = {"case": case, "changes": changes, "options": {"max_length": 14, "do_sample": False}}
        return Check("generation", title, "generate", arguments, expects, hint,
                     lambda replaced: model(case, replaced, **changes).greedy(ids, 14), 0, read=read)  # fmt: skip

    return [
        Check("generation", "the signature", "signature", {"wanted": list(SIGNATURE)},
              ", ".join(f"{n}={d!r}" for n, d in SIGNATURE.items()), fault=signature_fault),
        of_text("greedy", "generation", {}, ids, "the likeliest token each time, 14 in all",
                "generation with do_sample=False does not take the likeliest next token"),
        of_text("the end token", "end", ending, end, "it stops at eos_token_id",
                "generation must stop at eos_token_id",
                lambda value: up_to_the_end(value[0][0], end.shape[1], (0,))),
        of_text("each row to its own end", "generation", ending, ids[1:],
                "the second row goes on after the first has met eos_token_id",
                "generation must go on until every row has met eos_token_id",
                lambda value: up_to_the_end(value[0][1], ids.shape[1], None)),
        Check("generation", "default arguments", "generate", {"case": "dice", "changes": {}, "options": {}},
              "50 tokens, the prompt first", fault=default_fault),
        of_draws("do_sample", (1.0, 61, 1.0), "tokens drawn by their probabilities",
                 " with do_sample=True does not draw by the probabilities"),
        Check("generation", "drawn anew", "generate",
              {"case": "dice", "changes": {}, "options": {"max_length": 40, "do_sample": True}, "times": 2},
              "two calls with do_sample=True differ", fault=same_text_fault),
        of_draws("temperature", (2.0, 61, 1.0), "softmax(logits / 2)", ": the temperature must divide the logits"),
        of_draws("top_k", (1.0, 3, 1.0), "the three likeliest only", ": top_k must keep the k likeliest tokens"),
        of_draws("top_p", (1.0, 61, 0.7), "probabilities 0.4, 0.25, 0.2: the fewest that reach 0.7",
                 ": top_p must keep the fewest tokens that reach it"),
        of_draws("a small top_p", (1.0, 61, 0.3), "the likeliest alone", ": top_p must always keep the likeliest"),
    ]  # fmt: skip
