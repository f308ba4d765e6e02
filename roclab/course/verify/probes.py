"""What is asked of the file under test. Each probe takes the imported module and the arguments of `checks.json`, and
answers with plain values: numbers, lists, names. Nothing is decided here, because the file shares this process
(`check.py` decides). `answers.py` asks the reference the same.

An exception is an answer too: the worker reports it.
"""

from __future__ import annotations

import copy
import inspect
import os
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from roclab.course.verify.cases import CASES, INPUTS, directions, end_token
from roclab.course.verify.parts import MISSING

LARGEST = 50_000  # numbers in one answer


class Unexpected(Exception):
    """The file answered with something that cannot be evaluated; the text says what."""


def plain(x: Any, what: str = "model(input_ids)") -> Any:
    """A tensor as nested lists. Raises Unexpected if it is none."""
    if not isinstance(x, Tensor):
        raise Unexpected(f"{what} returned {type(x).__name__}, not a tensor")
    if x.numel() > LARGEST:
        raise Unexpected(f"{what} returned {x.numel():,} numbers, shape {tuple(x.shape)}")
    x = x.detach()
    return (x.double() if x.is_floating_point() else x).tolist()


def given(name: str) -> Tensor:
    return torch.tensor(INPUTS[name], dtype=torch.float32)


# ---- names, configuration, state dict


def names(module: ModuleType, wanted: list[str]) -> dict[str, list[str]]:
    """The names that are missing."""
    return {"missing": [name for name in wanted if not callable(getattr(module, name, None))]}


def defaults(module: ModuleType, wanted: dict[str, list]) -> dict[str, Any]:
    """The default configuration's values, `"(missing)"` for a field that is not there."""
    config = module.RocLMConfig()
    return {name: simple(getattr(config, name, "(missing)")) for name in wanted}


def simple(value: Any) -> Any:
    """Numbers, texts and lists and dicts of them as they are, a tuple as a list; anything else as it prints."""
    if isinstance(value, dict):
        return {str(key): simple(v) for key, v in list(value.items())[:100]}
    if isinstance(value, (list, tuple)):
        return [simple(v) for v in value[:100]]
    if isinstance(value, (int, float, str, type(None))):
        return value
    return value.item() if getattr(value, "shape", None) == () else repr(value)[:80]


def unknown_key(module: ModuleType, key: str) -> str | None:
    """The error about an unknown key in the config dict; None if there was none."""
    try:
        module.create_roclm_model({**CASES["head"].config, key: 1})
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def state(module: ModuleType, case: str) -> dict[str, Any]:
    """Names, shapes of the model's state dict and what strict loading says."""
    model = module.create_roclm_model(dict(CASES[case].config))
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    try:
        model.load_state_dict(tensors(case), strict=True)
    except Exception as error:
        return {"shapes": shapes, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    stored, loaded = model.state_dict(), tensors(case)
    return {"shapes": shapes, "error": None, "other": [n for n, w in loaded.items() if not torch.equal(stored[n], w)]}


def tensors(case: str) -> dict[str, Tensor]:
    return {name: torch.tensor(w) for name, w in CASES[case].weights.items()}


def build(module: ModuleType, case: str, **changes: Any) -> nn.Module:
    """The case's model, its weights loaded, in eval mode. Names that differ are the state check's business."""
    model = module.create_roclm_model({**CASES[case].config, **changes})
    if not isinstance(model, nn.Module):
        raise Unexpected(f"create_roclm_model returned {type(model).__name__}, not a torch module")
    model.load_state_dict(tensors(case), strict=False)
    return model.eval()


# ---- parts


def norm(module: ModuleType, x: str, weight: str, eps: float, dtype: str = "float32") -> dict[str, Any]:
    """The norm of x, its dtype, and how the weight was before it was set."""
    kind = getattr(torch, dtype)
    layer = module.RocLMRMSNorm(len(given(weight)), eps).to(kind)
    begin = plain(layer.weight, "RocLMRMSNorm.weight")
    learnable = isinstance(layer.weight, nn.Parameter) and layer.weight.requires_grad
    with torch.no_grad():
        layer.weight.copy_(given(weight))
        y = layer(given(x).to(kind))
    y, dtype = plain(y, "RocLMRMSNorm"), str(getattr(y, "dtype", "")).removeprefix("torch.")
    return {"y": y, "dtype": dtype, "initial": begin, "learnable": learnable}


def norm_slope(module: ModuleType, x: str, weight: str, towards: str) -> list:
    """The gradient of Σ towards·norm(x) by x and by the weight, side by side."""
    layer = module.RocLMRMSNorm(len(given(weight)), 1e-6)
    with torch.no_grad():
        layer.weight.copy_(given(weight))
    by = [given(x).requires_grad_(), layer.weight]
    found = torch.autograd.grad((layer(by[0]) * given(towards)).sum(), by, allow_unused=True, materialize_grads=True)
    return plain(torch.cat([gradient.flatten() for gradient in found]))


def mlp(module: ModuleType, case: str, x: str) -> list:
    layer = module.RocLMMLP(module.RocLMConfig(**CASES[case].config))
    start = "model.layers.0.mlp."
    own = {name.removeprefix(start): w for name, w in tensors(case).items() if name.startswith(start)}
    layer.load_state_dict(own, strict=False)
    with torch.no_grad():
        return plain(layer.eval()(given(x)), "RocLMMLP")


def rotate_half(module: ModuleType, x: str) -> list:
    return plain(module.rotate_half(given(x)), "rotate_half")


def repeat_kv(module: ModuleType, x: str, n_rep: int) -> list:
    return plain(module.repeat_kv(given(x), n_rep), "repeat_kv")


def apply_rotary(module: ModuleType, q: str, k: str, cos: str, sin: str) -> list[list]:
    """q (1, H, T, C) and k (1, K, T, C) turned, with cos and sin (T, C) in each shape that is in use: with a batch
    dimension, bare, and with dimensions for batch and heads; and with q, k in either order of heads and tokens."""
    answers, first = [], None
    for heads_at in (1, 2):
        for form in ((None,), (...,), (None, None), (None, slice(None), None)):
            angles = (given(cos)[form], given(sin)[form])
            try:
                oq, ok = module.apply_rotary_pos_emb(*(given(x).transpose(1, heads_at) for x in (q, k)), *angles)
            except Exception as error:
                first = first or error
                continue
            turned = [x.transpose(1, heads_at) for x in (oq, ok)]
            if [(x.ndim, *x.shape[:2]) for x in turned] == [(4, *INPUTS[x].shape[:2]) for x in (q, k)]:
                answers.append(plain(torch.cat(turned, dim=1), "apply_rotary_pos_emb"))
    if not answers and first:
        raise first
    return answers


# ---- the whole model


def logits(module: ModuleType, case: str, texts: str = "once", scales: Sequence[float] = ()) -> list[list]:
    """The logits of the case's texts, each run by itself by one model; q_proj and k_proj times the text's scale."""
    model, answers, ids_of_texts = build(module, case), [], CASES[case].texts(texts)
    for ids, scale in zip(ids_of_texts, scales or [1] * len(ids_of_texts), strict=True):
        if scale != 1:
            scaled = {name: w * scale for name, w in tensors(case).items() if "q_proj" in name or "k_proj" in name}
            model.load_state_dict(scaled, strict=False)
        with torch.no_grad():
            answers.append(plain(model(torch.tensor(ids))))
    return answers


def tied(module: ModuleType, case: str) -> list:
    """Loads the case's head into both head and embedding, then writes the case's embedding over the embedding."""
    model = build(module, case)
    old, new = (tensors(case)[name] for name in ("lm_head.weight", "model.embed_tokens.weight"))
    model.load_state_dict({"model.embed_tokens.weight": old, "lm_head.weight": old}, strict=False)
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight").copy_(new)
        return plain(model(torch.tensor(CASES[case].ids)))


def gradients(module: ModuleType, case: str) -> dict[str, float | None]:
    """The slope of Σ towards·logits along a direction in each parameter; None where no gradient arrived."""
    model, (towards, along) = build(module, case), directions()
    output = model(torch.tensor(CASES[case].ids))
    plain(output)
    if not output.requires_grad:
        return dict.fromkeys(along)
    (output * torch.tensor(towards)).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {n: (found[n] * torch.tensor(d)).sum().item() if n in found else None for n, d in along.items()}


# ---- generation


def generate(module: ModuleType, case: str, options: dict, times: int = 1, ends: bool = False) -> list:
    """So many texts, generated one after the other; `ends`: they meet an end token."""
    model: Any = build(module, case, **({"eos_token_id": end_token()} if ends else {}))
    torch.manual_seed(0)
    return [plain(model.generate(torch.tensor(CASES[case].ids), **options), "generate") for _ in range(times)]


def signature(module: ModuleType, wanted: dict[str, Any]) -> dict[str, Any]:
    """The default values of generate's arguments, whether it has **kwargs, which may hold them, and where a default
    may be set inside, how often each token is drawn by default."""
    parameters = inspect.signature(module.RocLMForCausalLM.generate).parameters
    given = {n: simple(parameters[n].default) for n in wanted if n in parameters}
    catches_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    inside = None in given.values() or (catches_all and len(given) < len(wanted))
    counts = draws(module, "dice", 500, 8, {}) if inside else None
    return {"defaults": given, "catches_all": catches_all, "drawn": counts}


def draws(module: ModuleType, case: str, rows: int, times: int, options: dict) -> dict[str, int]:
    """How often each token follows: `rows` texts of one token, continued by one, `times` over."""
    model: Any = build(module, case)
    ids = torch.tensor(CASES[case].ids).expand(rows, -1).contiguous()
    torch.manual_seed(0)
    found: dict[str, int] = {}
    for _ in range(times):
        new = model.generate(ids, max_length=ids.shape[1] + 1, **options)
        plain(new, "generate")
        if new.shape != (rows, ids.shape[1] + 1):
            raise Unexpected(f"generate returned shape {tuple(new.shape)}, not {(rows, ids.shape[1] + 1)}")
        for token, count in zip(*(v.tolist() for v in new[:, -1].unique(return_counts=True)), strict=True):
            found[str(token)] = found.get(str(token), 0) + count
    return found


# ---- the training parts


def own(module: ModuleType, *names: str) -> Any:
    """What the file defines by one of these names."""
    found = [getattr(module, name) for name in names if callable(getattr(module, name, None))]
    if not found:
        raise Unexpected(f"{MISSING} {' or '.join(names)}")
    return found[0]


def cross_entropy(module: ModuleType, logits: str, targets: str) -> list[float]:
    """The loss of each entry by itself."""
    loss = own(module, "cross_entropy")
    pairs = zip(given(logits), given(targets).long(), strict=True)
    return [plain(loss(x, y), "cross_entropy") for x, y in pairs]


def cross_entropy_slope(module: ModuleType, logits: str, targets: str) -> list:
    x = given(logits).requires_grad_()
    loss = own(module, "cross_entropy")(x, given(targets).long())
    plain(loss, "cross_entropy")
    if not loss.requires_grad:
        raise Unexpected("no gradient reaches the logits: item(), detach(), .data or no_grad() on the way")
    return plain(torch.autograd.grad(loss.sum(), x)[0])


def adamw(
    module: ModuleType, lr: list[float], betas: list[float], eps: float, weight_decay: float, reload: int = 0,
    idle: bool = False,
) -> list:  # fmt: skip
    """The parameters after each step. After `reload` steps (0: never) a new optimizer loads the old one's state.
    `idle`: a parameter without a gradient is among them."""

    def optimizer_of(values: Sequence[Tensor]) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        parameters = [nn.Parameter(value.detach().clone()) for value in values]
        made = own(module, "AdamW")(parameters, lr=lr[0], betas=tuple(betas), eps=eps, weight_decay=weight_decay)
        if not isinstance(made, torch.optim.Optimizer):
            raise Unexpected("AdamW is no subclass of torch.optim.Optimizer")
        return parameters, made

    first, second = given("parameters").split([12, 5])
    parameters, optimizer = optimizer_of([first.view(3, 4), second, *[torch.ones(3)] * idle])
    found = []
    for step, (rate, gradients) in enumerate(zip(lr, given("gradients"), strict=False)):
        if reload and step == reload:
            saved = copy.deepcopy(optimizer.state_dict())
            parameters, optimizer = optimizer_of(parameters)
            optimizer.load_state_dict(saved)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, gradient in zip(parameters, gradients.split([12, 5]), strict=False):
            parameter.grad = gradient.view_as(parameter).clone()
        optimizer.step()
        found.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    return plain(torch.stack(found))


def schedule(module: ModuleType, its: list[int], settings: list) -> list:
    return [simple(own(module, "get_lr_cosine_schedule")(it, *settings)) for it in range(*its)]


def clip(module: ModuleType, max_norm: float, generator: bool = False, idle: bool = False) -> list:
    """All gradients afterwards, one after the other. `idle`: a parameter without one stands in front."""
    parameters = [nn.Parameter(torch.ones(12)), nn.Parameter(torch.ones(5))]
    for parameter, gradient in zip(parameters, given("gradients")[0].split([12, 5]), strict=True):
        parameter.grad = gradient.clone()
    among = [nn.Parameter(torch.ones(3))] * idle + parameters
    own(module, "clip_gradients", "gradient_clipping")(iter(among) if generator else among, max_norm)
    return plain(torch.cat([p.grad for p in parameters if p.grad is not None]))


def batches(module: ModuleType, context_length: int, batch_size: int, times: int) -> dict[str, Any]:
    """Form of the batches; by how many places a row's next token and its target lie behind a token (each distance
    that occurs); how often a row begins where. No token occurs twice."""
    tokens = INPUTS["tokens"].astype(np.int64)
    place = {token: i for i, token in enumerate(tokens.tolist())}
    random.seed(0)
    np.random.seed(0)
    forms, steps, shifts, starts = set(), set(), set(), Counter[int]()
    for _ in range(times):
        try:
            pair = own(module, "get_batch")(tokens, batch_size, context_length, "cpu")
        except RuntimeError as error:
            if "equal size" in str(error):
                raise Unexpected("a window runs over the end: the last start is len(x) − context_length − 1") from error
            raise
        rows = [plain(x, "get_batch's part") for x in pair]
        forms |= {str((tuple(x.shape), str(x.dtype))) for x in pair}
        for inputs, targets in zip(*([[place.get(t, -100) for t in row] for row in x] for x in rows), strict=True):
            starts[inputs[0]] += 1
            steps |= {b - a for a, b in pairwise(inputs)}
            shifts |= {b - a for a, b in zip(inputs, targets, strict=False)}
    return {"forms": sorted(forms), "steps": sorted(steps), "shifts": sorted(shifts), "starts": starts}


def overfit(module: ModuleType, case: str, steps: int) -> dict[str, Any]:
    """The losses of so many steps on one batch, and the parameters that are then as they were."""
    loss_of, kind = own(module, "cross_entropy"), own(module, "AdamW")
    model, ids = build(module, case).train(), torch.tensor(CASES[case].ids)
    optimizer = kind(model.parameters(), lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)
    before, losses = [p.detach().clone() for p in model.parameters()], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model(ids[:, :-1]), ids[:, 1:])
        losses.append(plain(loss, "cross_entropy"))
        loss.backward()
        optimizer.step()
    same = [n for (n, p), old in zip(model.named_parameters(), before, strict=True) if torch.equal(p, old)]
    return {"losses": losses, "same": same}


def resume(module: ModuleType) -> dict[str, Any]:
    """A model and torch's AdamW saved after three steps and loaded into new ones: the iteration, and the parameters
    at once and after one more step, each as loaded and as they went on."""

    def new(seed: int, lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
        return model, torch.optim.AdamW(model.parameters(), lr=lr)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, 15).view(3, 5)).square().sum().backward()
        optimizer.step()

    def values(model: nn.Module) -> list:
        return plain(torch.cat([p.flatten() for p in model.parameters()]))

    save, load = own(module, "save_checkpoint"), own(module, "load_checkpoint")
    first, second = new(1, 0.1), new(2, 0.3)
    for _ in range(3):
        step(*first)
    with tempfile.TemporaryDirectory(dir=os.environ["TMPDIR"]) as folder:  # the file may write there
        path = os.path.join(folder, "checkpoint.pt")
        save(*first, 3, path)
        iteration = simple(load(path, *second))
    found = {"iteration": iteration, "loaded": [values(second[0]), values(first[0])]}
    step(*first)
    step(*second)
    return found | {"next": [values(second[0]), values(first[0])]}
