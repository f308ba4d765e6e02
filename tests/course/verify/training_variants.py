"""Wrong training parts: each is `training.py` with one typical mistake put in, behind the right model of `plain.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.course.verify.variants import PLAIN, Edits, changed

TRAINING = PLAIN + (Path(__file__).parent / "training.py").read_text(encoding="utf-8")

SHIFTED = "logits = logits - logits.amax(-1, keepdim=True)\n    "
LOSSES = "losses = logits.exp().sum(-1).log() - logits.gather(-1, targets[..., None])[..., 0]"
MEAN = "return losses.mean()"
ADAMW = TRAINING[TRAINING.index("class AdamW") : TRAINING.index("    @torch.no_grad()\n    def step")]
G = "g, state = p.grad, self.state[p]"
T = 't = state["t"] = state.get("t", 0) + 1'
DECAY = "p -= lr * decay * p"
CORRECTED = "m, v = m / (1 - b1**t), v / (1 - b2**t)"
UPDATE = "p -= lr * m / (v.sqrt() + eps)"
WARMUP = "return max_learning_rate * it / warmup_iters"
AFTER = "    if it > cosine_cycle_iters:\n        return min_learning_rate\n"
PART = "part = (it - warmup_iters) / (cosine_cycle_iters - warmup_iters)"
NORM = "norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))"
ABOVE = "if norm > max_norm:\n        for g in gradients:\n            g *= max_norm / norm"
GRADIENTS = "gradients = [p.grad for p in list(parameters) if p.grad is not None]"
STARTS = "starts = torch.randint(0, len(x) - context_length, (batch_size,)).tolist()"
TARGETS = "x[s + 1 : s + 1 + context_length]"
STATE = '"optimizer": optimizer.state_dict()'
HEAD = "return self.lm_head(x)"

WRONG_TRAINING: Mapping[str, Mapping[str, Edits]] = {
    "loss": {
        "maximum not subtracted": (SHIFTED, ""),
        "exp divided by its sum": (
            (SHIFTED, ""), (LOSSES, "p = logits.exp() / logits.exp().sum(-1, keepdim=True)\n"
             "    losses = -p.gather(-1, targets[..., None]).log()"),
        ),
        "logarithm of the softmax": (LOSSES, "losses = -logits.softmax(-1).gather(-1, targets[..., None]).log()"),
        "losses summed": (MEAN, "return losses.sum()"),
        "softmax before the loss": (SHIFTED, SHIFTED.replace("logits -", "logits.softmax(-1) -", 1)
                                    .replace("logits.amax", "logits.softmax(-1).amax")),
        "softmax over the first dimension": (
            (SHIFTED, ""), (LOSSES, "losses = (logits.logsumexp(0) - logits).gather(-1, targets[..., None])"),
        ),
        "two dimensions only": changed(LOSSES, "logits.gather(-1, targets[..., None])[..., 0]",
                                       "logits[torch.arange(len(logits)), targets]"),
        "loss detached": (MEAN, "return losses.mean().detach()"),
    },
    "AdamW": {
        "decay in the gradient": ((G, f"{G}\n                g = g + decay * p"), (f"                {DECAY}\n", "")),
        "decay not scaled by lr": (DECAY, "p -= decay * p"),
        "no decay": (f"                {DECAY}\n", ""),
        "no bias correction": (f"                {CORRECTED}\n", ""),
        "bias correction of m alone": (CORRECTED, "m = m / (1 - b1**t)"),
        "bias correction of v alone": (CORRECTED, "v = v / (1 - b2**t)"),
        "t begins at 0": (CORRECTED, "m, v = m / (1 - b1 ** (t - 1)), v / (1 - b2 ** (t - 1))"),
        "eps inside the root": changed(UPDATE, "(v.sqrt() + eps)", "(v + eps).sqrt()"),
        "no root": changed(UPDATE, "v.sqrt()", "v"),
        "lr of the constructor": (
            ('super().__init__(params, {"lr": lr,', 'self.lr = lr\n        super().__init__(params, {"lr": lr,'),
            ('group["lr"], group["betas"]', 'self.lr, group["betas"]'),
        ),
        "t outside of the state": (
            ('super().__init__(params, {"lr": lr,', 'self.t = {}\n        super().__init__(params, {"lr": lr,'),
            (T, "t = self.t[p] = self.t.get(p, 0) + 1"),
        ),
        "state outside of the state dict": (
            ('super().__init__(params, {"lr": lr,', 'self.own = {}\n        super().__init__(params, {"lr": lr,'),
            (G, "g, state = p.grad, self.own.setdefault(p, {})"),
        ),
        "gradients taken for granted": ("                if p.grad is None:\n                    continue\n", ""),
        "no optimizer": (
            ("class AdamW(torch.optim.Optimizer):", "class AdamW:"),
            ("super().__init__(params, {", "self.state = {p: {} for p in params}\n"
             "        self.param_groups = [{'params': params}]\n        self.param_groups[0].update({"),
        ),
    },
    "schedule": {
        "warm-up one step ahead": changed(WARMUP, "* it", "* (it + 1)"),
        "cosine from step 0": (PART, "part = it / cosine_cycle_iters"),
        "cosine over the whole cycle": (PART, "part = (it - warmup_iters) / cosine_cycle_iters"),
        "cosine one step ahead": changed(PART, "(it - warmup_iters)", "(it - warmup_iters + 1)"),
        "cosine to zero": ("return min_learning_rate +", "min_learning_rate = 0\n    return min_learning_rate +"),
        "cosine goes on": (AFTER, ""),
        "warm-up of nothing": ("if it < warmup_iters:", "if it <= warmup_iters:"),
    },
    "clipping": {
        "each parameter by itself": (
            ABOVE, "for g in gradients:\n        if g.norm() > max_norm:\n            g *= max_norm / g.norm()"
        ),
        "below the bound too": (ABOVE, "for g in gradients:\n        g *= max_norm / norm"),
        "norm without root": changed(NORM, "math.sqrt", "float"),
        "each number": (ABOVE, "for g in gradients:\n        g.clamp_(-max_norm, max_norm)"),
        "nothing in place": (ABOVE, "return [g * min(1, max_norm / norm) for g in gradients]"),
        "generator used up": (
            (GRADIENTS, "gradients = [p.grad for p in parameters if p.grad is not None]"),
            (ABOVE, "for p in parameters:\n        if p.grad is not None:\n"
             "            p.grad *= min(1, max_norm / norm)"),
        ),
        "gradients taken for granted": (GRADIENTS, "gradients = [p.grad for p in list(parameters)]"),
    },
    "batches": {
        "targets not shifted": (TARGETS, "x[s : s + context_length]"),
        "targets shifted by two": (
            changed(STARTS, "- context_length", "- context_length - 1"), (TARGETS, "x[s + 2 : s + 2 + context_length]"),
        ),
        "last window never drawn": changed(STARTS, "- context_length", "- context_length - 1"),
        "windows over the end": changed(STARTS, "- context_length", "- context_length + 1"),
        "always the first window": (STARTS, "starts = [0] * batch_size"),
        "int32": ("return inputs.to(device), targets.to(device)", "return inputs.int(), targets.int()"),
    },
    "overfitting": {
        "embedding detached": (
            "cos, sin = self.rotary_emb(positions)",
            "cos, sin = self.rotary_emb(positions)\n        x = x.detach() if self.training else x",
        ),
    },
    "resuming": {
        "optimizer not saved": (
            (f"{STATE}, ", ""), ('    optimizer.load_state_dict(stored["optimizer"])\n', ""),
        ),
        "model not loaded": ('    model.load_state_dict(stored["model"])\n', ""),
        "iteration not returned": ('    return stored["iteration"]\n', ""),
    },
}  # fmt: skip
