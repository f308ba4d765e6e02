"""The checks of the state dict and of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from roclab.course.verify.cases import CASES, shapes
from roclab.course.verify.check import Check, Verdict, fault

CONFIG = CASES["order"].config
FULL = "full_attention"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768,
    "rope_theta": 1000000.0, "rope_scaling": None, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "attention_bias": False, "attention_dropout": 0.0, "pad_token_id": None, "bos_token_id": 151643,
    "eos_token_id": 151645, "tie_word_embeddings": True, "layer_types": None,
}  # fmt: skip
# Other values that mean the same: None may be filled in, a list may be empty, an id may stand in a list.
ALSO: dict[str, tuple[Any, ...]] = {
    "rope_scaling": ({}, {"rope_type": "default"}, {"type": "default"}), "hidden_act": ("swish",),
    "pad_token_id": (151643, 151645), "bos_token_id": ([151643],), "eos_token_id": ([151645],),
    "layer_types": ([], FULL, [FULL], [FULL] * 28),
}  # fmt: skip


def same_default(name: str, value: Any) -> bool:
    default = DEFAULTS[name]
    if isinstance(default, float) and isinstance(value, float):
        return abs(value - default) <= 1e-6 * default  # it may have passed through float32
    return value == default or value in ALSO.get(name, ())


def default_fault(value: dict[str, Any]) -> Verdict | None:
    wrong = [f"{n} is {value[n]!r:.80}, not {d!r}" for n, d in DEFAULTS.items() if not same_default(n, value[n])]
    said = "; ".join(wrong)
    hint = f"RocLMConfig does not have the handout's defaults, so the checkpoint does not fit: {said}"
    return fault(said, hint) if wrong else None


def unknown_key_fault(said: str | None) -> Verdict | None:
    if said is not None and "hiden_size" in said:
        return None
    hint = "an unknown key in the config dict must raise an error that names it, or a typing error goes unnoticed"
    return fault(said or "no error", hint)


def bias_fault(part: str, belongs: Callable[[str], bool]) -> Callable[[Any], Verdict | None]:
    def find(value: dict[str, Any]) -> Verdict | None:
        said = ", ".join(sorted(n for n in value["shapes"] if n.endswith(".bias") and belongs(n)))
        return fault(said, f"{part} has no bias: {said} must go (bias=False)") if said else None

    return find


def qk_norm_fault(value: dict[str, Any]) -> Verdict | None:
    C, found = CONFIG["head_dim"], value["shapes"].items()
    # Under any prefix: the names are the next check's business.
    shape = {n: next((s for name, s in found if name.endswith(f"{n}.weight")), None) for n in ("q_norm", "k_norm")}
    wrong = {n: "missing" if s is None else tuple(s) for n, s in shape.items() if s != [C]}
    said = ", ".join(f"{n}.weight {s}" for n, s in wrong.items())
    return fault(said, f"attention needs q_norm and k_norm, RMSNorm over head_dim ({C}): {said}") if wrong else None


def names_fault(value: dict[str, Any]) -> Verdict | None:
    found, wanted = value["shapes"], {name: list(shape) for name, shape in shapes(CONFIG).items()}
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    other = [n for n in wanted if found.get(n, wanted[n]) != wanted[n]]
    lists = {
        "missing": missing, "not in the handout's layout": extra,
        "of another shape": [f"{n} {tuple(found[n])} for {tuple(wanted[n])}" for n in other],
    }  # fmt: skip
    said = "; ".join(f"{what}: {', '.join(some[:4])}{' …' * (len(some) > 4)}" for what, some in lists.items() if some)
    hint = f"the checkpoint's parameter names do not fit: {said}"
    if extra and not missing and all(any(word in n for word in ("rotary", "inv_freq", "mask", "cos")) for n in extra):
        hint = f"buffers stand in the state dict ({', '.join(extra)}): register them with persistent=False"
    return fault(said, hint) if said else None


def loading_fault(value: dict[str, Any]) -> Verdict | None:
    if (said := value["error"]) is not None:
        return fault(said, f"load_state_dict(strict=True) refuses the checkpoint: {said}", specific=False)
    if not (other := value["other"]):
        return None
    said = ", ".join(other[:4])
    found = f"the state dict gives back other values: {said}"
    if set(other) <= {"model.embed_tokens.weight", "lm_head.weight"}:
        return fault(found, "head: head and embedding share one matrix where tie_word_embeddings is False", "head")
    return fault(found, f"a loaded checkpoint is not kept as it is: {said}")


def layout_checks() -> list[Check]:
    def of_state(component: str, title: str, expects: str, find: Callable[[Any], Verdict | None]) -> Check:
        return Check(component, title, "state", {"case": "order"}, expects, fault=find)

    return [
        of_state("RMSNorm", "no bias", "norms with a weight alone", bias_fault("RMSNorm", lambda n: "norm" in n)),
        of_state("SwiGLU", "no bias", "gate, up and down without bias", bias_fault("SwiGLU", lambda n: ".mlp." in n)),
        of_state("attention", "no bias", "q, k, v, o without bias (attention_bias False)",
                 bias_fault("attention (attention_bias False)", lambda n: ".self_attn." in n and "norm" not in n)),
        of_state("attention", "q_norm and k_norm", "one weight over head_dim each", qk_norm_fault),
        of_state("head", "no bias", "lm_head without bias", bias_fault("the head", lambda n: n.startswith("lm_head"))),
        of_state("checkpoint", "names and shapes", "those of Qwen3's layout", names_fault),
        of_state("checkpoint", "strict loading", "load_state_dict(…, strict=True)", loading_fault),
        Check("checkpoint", "the configuration's defaults", "defaults", {"wanted": list(DEFAULTS)}, "the handout's",
              fault=default_fault),
        Check("checkpoint", "unknown configuration keys", "unknown_key", {"key": "hiden_size"},
              "an error that names the key", fault=unknown_key_fault),
    ]  # fmt: skip
