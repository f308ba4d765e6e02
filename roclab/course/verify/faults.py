"""What can be wrong with an answer besides its numbers. Each function takes the check and the answer; it says what it
found, in words for the check's hint (`{found}`), gives a verdict with a hint of its own, or nothing."""

from __future__ import annotations

import re
from typing import Any

from roclab.course.verify.answers import READINGS, draws, frequencies, frequency_gap, largest_gap, numbers, relative_gap
from roclab.course.verify.cases import CASES, EMBEDDING, HEAD, directions, shapes
from roclab.course.verify.check import Check, Verdict, expectation, fault
from roclab.course.verify.parts import REFUSAL

Fault = str | Verdict | None


def shortened(names: list[str]) -> str:
    return ", ".join(names[:4]) + " …" * (len(names) > 4)


# ---- what the file does besides answering, as the worker says of the whole run (`worker.serve`)


def importing(check: Check, ran: dict[str, Any]) -> Fault:
    error, refused = str(ran["import"].get("error") or ""), ran["refused"]
    return f"{error}; {REFUSAL}: {refused[0]}" if error and refused and REFUSAL not in error else error


def printing(check: Check, ran: dict[str, Any]) -> Fault:
    if not (lines := ran["printed"].get("lines")):
        return None
    when = "while it is imported" if lines == ran["import"].get("printed") else "while it runs"
    return f"the file prints {lines} line{'s' * (lines != 1)} {when}: {ran['printed']['first']!r}"


def touching(check: Check, ran: dict[str, Any]) -> Fault:
    return "; ".join([*map(str, ran["refused"]), *(f"writing {name}" for name in ran["left"])][:5])


def standing_in(check: Check, ran: dict[str, Any]) -> Fault:
    return "; ".join(map(str, ran["foreign"].get(check.component, ())))


def missing_names(check: Check, value: dict[str, list[str]]) -> Fault:
    missing = ", ".join(map(str, value["missing"]))
    return fault(f"missing: {missing}", f"the file does not define {missing}") if missing else None


# ---- RMSNorm by itself


def other_dtype(check: Check, value: dict[str, Any]) -> Fault:
    dtype = check.arguments["dtype"]
    hint = f"RMSNorm must return the dtype it is given, {dtype}"
    return None if value["dtype"] == dtype else fault(f"{value['dtype']} comes back", hint)


def fixed_scale(check: Check, value: dict[str, Any]) -> Fault:
    hint = "RMSNorm's scale must be learnable: nn.Parameter(torch.ones(hidden_size))"
    return None if value["learnable"] else fault("weight is not a Parameter that learns", hint)


# ---- the configuration and the state dict

BIASES = {"RMSNorm": "norm", "SwiGLU": r"\.mlp\.", "attention": r"\.self_attn\.(?!.*norm)", "head": "^lm_head"}


def other_defaults(check: Check, value: dict[str, Any]) -> Fault:
    def same(found: Any, default: Any, *also: Any) -> bool:
        if isinstance(default, float) and isinstance(found, float):
            return abs(found - default) <= 1e-6 * default  # it may have passed through float32
        return found == default or found in also  # also: None filled in, an empty list, an id in a list

    wanted = check.arguments["wanted"].items()
    return "; ".join(f"{n} is {value[n]!r:.80}, not {d[0]!r}" for n, d in wanted if not same(value[n], *d))


def silent_about_a_key(check: Check, said: str | None) -> Fault:
    return None if said is not None and check.arguments["key"] in said else said or "no error"


def bias(check: Check, value: dict[str, Any]) -> Fault:
    part = BIASES[check.component]
    return ", ".join(sorted(n for n in value["shapes"] if n.endswith(".bias") and re.search(part, n)))


def no_qk_norm(check: Check, value: dict[str, Any]) -> Fault:
    C, found = CASES["order"].config["head_dim"], value["shapes"].items()
    # Under any prefix: the names are the next check's business.
    shape = {n: next((s for name, s in found if name.endswith(f"{n}.weight")), None) for n in ("q_norm", "k_norm")}
    return ", ".join(f"{n}.weight {'missing' if s is None else tuple(s)}" for n, s in shape.items() if s != [C])


def other_layout(check: Check, value: dict[str, Any]) -> Fault:
    found, wanted = value["shapes"], {name: list(shape) for name, shape in shapes(CASES["order"].config).items()}
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    other = [n for n in wanted if found.get(n, wanted[n]) != wanted[n]]
    lists = {
        "missing": missing, "not in the handout's layout": extra,
        "of another shape": [f"{n} {tuple(found[n])} for {tuple(wanted[n])}" for n in other],
    }  # fmt: skip
    said = "; ".join(f"{what}: {shortened(some)}" for what, some in lists.items() if some)
    if extra and not missing and all(re.search("rotary|inv_freq|mask|cos", n) for n in extra):
        hint = f"buffers stand in the state dict ({', '.join(extra)}): register them with persistent=False"
        return fault(said, hint)
    return said


def loading(check: Check, value: dict[str, Any]) -> Fault:
    if (said := value["error"]) is not None:
        return fault(said, f"load_state_dict(strict=True) refuses the checkpoint: {said}", specific=False)
    if not (other := value["other"]):
        return None
    said = ", ".join(other[:4])
    found = f"the state dict gives back other values: {said}"
    if set(other) <= {EMBEDDING, HEAD}:
        return fault(found, "head: head and embedding share one matrix where tie_word_embeddings is False", "head")
    return fault(found, f"a loaded checkpoint is not kept as it is: {said}")


# ---- the whole model

PARTS = {
    "embed_tokens": "decoder", "input_layernorm": "RMSNorm", "q_proj": "attention", "k_proj": "attention",
    "v_proj": "attention", "q_norm": "attention", "k_norm": "attention", "o_proj": "attention",
    "post_attention_layernorm": "RMSNorm", "gate_proj": "SwiGLU", "up_proj": "SwiGLU", "down_proj": "SwiGLU",
    "norm": "RMSNorm", "lm_head": "head",
}  # in the order in which the model uses them  # fmt: skip


def active_dropout(check: Check, value: Any) -> Fault:
    hint = "attention's dropout is active in eval: pass self.training to it (SDPA's dropout_p 0 in eval)"
    same = largest_gap(numbers(value[0]), numbers(value[1])) <= 1e-4
    return None if same else fault("two runs on the same ids differ", hint)


def detached(check: Check, value: dict[str, float | None]) -> Fault:
    found, right, names = READINGS["in order"](value)[0], expectation(check), list(directions()[1])
    assert right is not None
    if silent := [name.removesuffix(".weight") for name, s in zip(names, found, strict=True) if s == 0]:
        component = part_without_gradient(silent)
        hint = f"{component}: no gradient reaches {shortened(silent)}: detach(), .data or no_grad() on the way, or "
        text = f"no gradient in {len(silent)} of {len(found)} parameters"
        return fault(text, hint + "they are not used", component)
    wrong = [n for n, a, b in zip(names, found[:, None], right[:, None], strict=True) if relative_gap(a, b) > 0.02]
    if relative_gap(found, right) <= 0.02:
        return None
    hint = f"the gradient of {shortened(wrong)} is not the slope of the logits: something on their way is detached"
    return fault(f"another slope: {shortened(wrong)}", hint, specific=False)


def part_without_gradient(silent: list[str]) -> str:
    """The part that stops the gradient: that of the last parameter without one, unless a layer has none at all."""
    layers = [name.split(".")[2] for name in silent if "_proj" in name]
    if any(layers.count(n) == 7 for n in layers):
        return "decoder"
    return PARTS[max((name.split(".")[-1] for name in silent), key=list(PARTS).index)]


# ---- generation


def other_length(check: Check, value: list[list[list[int]]]) -> Fault:
    row, prompt = value[0][0], CASES["dice"].ids[0].tolist()
    if len(row) != 50:
        return fault(f"{len(row)} tokens", "generation: max_length is 50 by default, the prompt counted")
    if row[: len(prompt)] != prompt:
        return fault(f"begins with {row[:3]}", "generation: the result must begin with the prompt")
    return None


def other_signature(check: Check, value: dict[str, Any]) -> Fault:
    given, wanted = value["defaults"], check.arguments["wanted"]
    wrong = {n: repr(v) for n, v in given.items() if v not in (wanted[n], None)}
    wrong |= {n: "missing" for n in wanted if n not in given and not value["catches_all"]}
    if not wrong and value["drawn"]:
        right = frequencies(draws({}, "dice", 0, 0, wanted))[0]
        if frequency_gap(frequencies(value["drawn"])[0], right) > 0.04:
            return "without arguments it draws as with others: a default set inside is another, or sampling is wrong"
    return ", ".join(f"{n} is {v}, not {wanted[n]!r}" for n, v in wrong.items())


def same_text(check: Check, value: list[list[list[int]]]) -> Fault:
    return "" if value[0] != value[1] else "twice the same text"


# ---- the training parts


def other_batches(check: Check, value: dict[str, Any]) -> Fault:
    """Shape, dtype, and tokens in a row."""
    size = (check.arguments["batch_size"], check.arguments["context_length"])
    if value["forms"] != [str((size, "torch.int64"))]:
        return " and ".join(value["forms"])
    return "" if value["steps"] == [1] else "a row's tokens do not follow each other"


def not_learnt(check: Check, value: dict[str, Any]) -> Fault:
    first, last = value["losses"][0], value["losses"][-1]
    if same := value["same"]:
        hint = f"overfitting: no step changes {shortened(same)}: detach(), .data or no_grad() on the way, or "
        return fault(f"{len(same)} parameters stay as they are", hint + "AdamW leaves them out")
    return "" if last < 0.05 else f"the loss goes from {first:.3g} to {last:.3g} in {check.arguments['steps']} steps"


def other_iteration(check: Check, value: dict[str, Any]) -> Fault:
    return "" if value["iteration"] == 3 else f"{value['iteration']!r}, not 3"


def other_loaded(check: Check, value: dict[str, Any]) -> Fault:
    return "" if value["loaded"][0] == value["loaded"][1] else "other parameters"


def other_next_step(check: Check, value: dict[str, Any]) -> Fault:
    return "" if value["next"][0] == value["next"][1] else "other parameters after the next step"
