"""Right training parts, one formula a line, for the end of `plain.py`: `training_variants.py` puts the mistakes into
this text."""

import math

import torch


def cross_entropy(logits, targets):
    logits = logits - logits.amax(-1, keepdim=True)
    losses = logits.exp().sum(-1).log() - logits.gather(-1, targets[..., None])[..., 0]
    return losses.mean()


class AdamW(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            lr, (b1, b2), eps, decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                g, state = p.grad, self.state[p]
                t = state["t"] = state.get("t", 0) + 1
                m = state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
                v = state["v"] = b2 * state.get("v", 0) + (1 - b2) * g * g
                p -= lr * decay * p
                m, v = m / (1 - b1**t), v / (1 - b2**t)
                p -= lr * m / (v.sqrt() + eps)


def get_lr_cosine_schedule(it, max_learning_rate, min_learning_rate, warmup_iters, cosine_cycle_iters):
    if it < warmup_iters:
        return max_learning_rate * it / warmup_iters
    if it > cosine_cycle_iters:
        return min_learning_rate
    part = (it - warmup_iters) / (cosine_cycle_iters - warmup_iters)
    return min_learning_rate + (1 + math.cos(math.pi * part)) / 2 * (max_learning_rate - min_learning_rate)


def clip_gradients(parameters, max_norm):
    gradients = [p.grad for p in list(parameters) if p.grad is not None]
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    if norm > max_norm:
        for g in gradients:
            g *= max_norm / norm


def get_batch(x, batch_size, context_length, device):
    starts = torch.randint(0, len(x) - context_length, (batch_size,)).tolist()
    inputs = torch.stack([torch.as_tensor(x[s : s + context_length]) for s in starts])
    targets = torch.stack([torch.as_tensor(x[s + 1 : s + 1 + context_length]) for s in starts])
    return inputs.to(device), targets.to(device)


def save_checkpoint(model, optimizer, iteration, out):
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}, out)


def load_checkpoint(src, model, optimizer):
    stored = torch.load(src)
    model.load_state_dict(stored["model"])
    optimizer.load_state_dict(stored["optimizer"])
    return stored["iteration"]
