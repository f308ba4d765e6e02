"""The handout's names and the part of the model that each of them is, those of the training parts, and how a refusal
begins."""

from __future__ import annotations

from types import FrameType

REFUSAL = "refused while the file is checked"
MISSING = "the file does not define"
# Where one of these raises, its part is at fault.
CLASSES_AND_FUNCTIONS = {
    "RocLMRMSNorm": "RMSNorm", "RocLMMLP": "SwiGLU", "RocLMAttention": "attention", "RocLMRotaryEmbedding": "RoPE",
    "rotate_half": "RoPE", "apply_rotary_pos_emb": "RoPE", "repeat_kv": "GQA", "RocLMDecoderLayer": "decoder",
    "RocLMModel": "decoder", "RocLMForCausalLM": "head",
}  # fmt: skip
# The optional parts of `--training`, by the names that courses on language models use. Each stands alone.
TRAINING = {
    "cross_entropy": "loss", "AdamW": "AdamW", "get_lr_cosine_schedule": "schedule", "clip_gradients": "clipping",
    "gradient_clipping": "clipping", "get_batch": "batches", "save_checkpoint": "resuming",
    "load_checkpoint": "resuming",
}  # fmt: skip
CLASSES_AND_FUNCTIONS |= TRAINING
TRAINING_PARTS = {*TRAINING.values(), "overfitting"}
NAMES = CLASSES_AND_FUNCTIONS | {
    "RocLMForCausalLM.generate": "generation", "RocLMConfig": "checkpoint", "create_roclm_model": "checkpoint",
}  # fmt: skip
# A part that is computed inside of others, and is no one's own if they are not.
INSIDE = {"mask": ("attention", "decoder")}


def part_of(frame: FrameType) -> str | None:
    """The part whose class or function is running."""
    owner, name = frame.f_locals.get("self"), frame.f_code.co_name
    called = name if owner is None else type(owner).__name__
    return NAMES.get(f"{called}.{name}") or NAMES.get(called)
