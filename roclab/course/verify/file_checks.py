"""The checks of what the file does besides answering. They read what the worker says about the run (`worker.serve`)."""

from __future__ import annotations

from typing import Any

from roclab.course.verify.check import Check, Verdict, fault

NAMES = (
    "RocLMConfig", "RocLMRMSNorm", "RocLMMLP", "RocLMAttention", "RocLMRotaryEmbedding", "RocLMDecoderLayer",
    "RocLMModel", "RocLMForCausalLM", "rotate_half", "apply_rotary_pos_emb", "repeat_kv", "create_roclm_model",
)  # fmt: skip


def import_fault(ran: dict[str, Any]) -> Verdict | None:
    error = str(ran["import"].get("error") or "")
    return fault(error, f"the file cannot be used: {error}") if error else None


def printing_fault(ran: dict[str, Any]) -> Verdict | None:
    if not (lines := ran["printed"].get("lines")):
        return None
    when = "while it is imported" if lines == ran["import"].get("printed") else "while it runs"
    said = f"the file prints {lines} line{'s' * (lines != 1)} {when}: {ran['printed']['first']!r}"
    return fault(said, f"{said}; move it below if __name__ == '__main__', or take it out")


def touching_fault(ran: dict[str, Any]) -> Verdict | None:
    said = "; ".join([*map(str, ran["refused"]), *(f"writing {name}" for name in ran["left"])][:5])
    return fault(said, f"the file does what a model has no need of: {said}") if said else None


def names_fault(value: dict[str, list[str]]) -> Verdict | None:
    missing, ours = (", ".join(map(str, value[key])) for key in ("missing", "ours"))
    if missing:
        return fault(f"missing: {missing}", f"the file does not define {missing}")
    return fault(f"RocLab's own: {ours}", f"the file must define its own: RocLab's are {ours}") if ours else None


def file_checks() -> list[Check]:
    return [
        Check("file", "can be imported", "", {}, "it defines its names and ends", fault=import_fault),
        Check("file", "prints nothing", "", {}, "no output", fault=printing_fault),
        Check("file", "touches nothing", "", {}, "no files, programs or network", fault=touching_fault),
        Check("file", "the handout's names", "names", {"wanted": NAMES}, ", ".join(NAMES), fault=names_fault),
    ]
