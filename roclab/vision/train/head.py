"""The head on frozen features: multinomial logistic regression on standardised features.

`put_head` writes it into the network's own last layer, so that the outcome is a whole model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from roclab.core.exceptions import RocLabError
from roclab.vision.evaluate.metrics import loss_and_accuracy
from roclab.vision.models.classifier import Classifier
from roclab.vision.models.inference import softmax

logger = logging.getLogger(__name__)

GRID = range(-10, 3)  # half decades of C that are tried: 1e-5 to 10
WIDEST = range(-16, 9)  # as far as the grid widens where the best C is at its end: 1e-8 to 1e4
ITERATIONS = 2000  # a bound that the solver does not reach: its tolerance stops it after 15 to 250 (docs/log-vision.md)
SHARES = (0.25, 0.5, 0.75)  # of each class's predictions; with all of them the gain is a little smaller
FEW = 500  # validation images; with fewer, the loss on one validation split says little about C

# x (N, D), y: labels (N,) or probabilities (N, C), x_val (M, D), y_val (M,)
Cut = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass
class Head:
    """A linear classifier on raw features: `logits = x @ weight.T + bias`."""

    weight: np.ndarray  # (C, D) float32
    bias: np.ndarray  # (C,)
    c: float  # inverse regularisation strength, as scikit-learn counts it
    history: list[dict[str, float]] = field(default_factory=list)  # a row per iteration of L-BFGS
    tried: list[dict[str, float]] = field(default_factory=list)  # a row per regularisation

    def logits(self, x: np.ndarray) -> np.ndarray:
        """(N, C) of raw features (N, D)."""
        return x @ self.weight.T + self.bias

    def probs(self, x: np.ndarray) -> np.ndarray:
        """(N, C) class probabilities of raw features (N, D)."""
        return softmax(self.logits(x))

    def scores(self, **images: Sequence[np.ndarray]) -> dict[str, float]:
        """Loss and accuracy by the names of sets of images, each as features (N, D) and labels (N,), of which there
        may be probabilities (N, C)."""
        found: dict[str, float] = {}
        for name, (x, y) in images.items():
            found[f"{name}_loss"], found[f"{name}_top1"] = loss_and_accuracy(self.probs(x), likeliest(y))
        return found


def likeliest(y: np.ndarray) -> np.ndarray:
    """Labels (N,), also of probabilities (N, C)."""
    return y if y.ndim == 1 else y.argmax(1)


def balanced_weights(kind: str | None, labels: np.ndarray, classes: int) -> np.ndarray | None:
    """The weight (C,) of an image of each class, for a `kind` of "balanced": n / (C n_c) where n_c of n images (N,)
    are of class c (King and Zeng 2001), so that every class weighs the same in all and the mean image one. None for
    None."""
    return len(labels) / (classes * np.bincount(labels, minlength=classes)) if kind else None


def choose_head(
    cut: Cut,
    classes: int,
    more: Sequence[Cut] = (),
    weights: np.ndarray | None = None,
    prior: Head | None = None,
) -> Head:
    """The head fitted to the cut's training images with the C whose loss on validation images is lowest.

    The loss and not the accuracy: on fifty validation images several C tie in accuracy, and the loss still tells them
    apart. `more` are further cuts of the same images (cross-validation), over which the loss is averaged. Where the
    best C is at an end of `GRID`, the grid is widened there, up to `WIDEST`. `weights` (C,) of the classes count in all
    of these losses; `prior` as in `fit_head`.
    """
    cuts = [(cut, Space.of(cut[0])) for cut in (cut, *more)]
    tried: dict[int, dict[str, float]] = {}

    def loss_at(half: int) -> float:
        c = round(10.0 ** (half / 2), 8)
        heads = [fit_head(x, y, classes, c, None, space, weights, prior) for (x, y, *_), space in cuts]
        scores = [
            loss_and_accuracy(head.probs(x), y, weights) for head, ((_, _, x, y), _) in zip(heads, cuts, strict=True)
        ]
        loss, accuracy = map(float, np.mean(scores, axis=0))
        tried[half] = {"c": c, "val_loss": loss, "val_top1": accuracy}
        return loss

    losses: list[float] = []
    for half in GRID:  # strong regularisation first: once the loss has risen twice in a row, weaker ones overfit more
        losses.append(loss_at(half))
        if len(losses) > 2 and losses[-3] < losses[-2] < losses[-1]:
            break
    while True:
        best = min(sorted(tried), key=lambda half: tried[half]["val_loss"])
        if not np.isfinite(tried[best]["val_loss"]):
            raise RocLabError("the head's training diverged at every regularisation: are there NaN among the features?")
        beyond = best - 1 if best == min(tried) else best + 1
        if beyond in tried:
            break
        if beyond not in WIDEST:
            logger.warning(f"the head's C = {tried[best]['c']:g} is the last that is tried: the best may lie beyond it")
            break
        loss_at(beyond)
    x, y, *val = cut
    head = fit_head(x, y, classes, tried[best]["c"], val, cuts[0][1], weights, prior)
    head.tried = [tried[half] for half in sorted(tried)]
    return head


def further_cuts(views: Sequence[np.ndarray], y: np.ndarray, seed: int) -> list[Cut]:
    """Five cuts of the images, each image validating in one of them. `views` are (N, D) features under each view:
    all of them train, the first validates."""
    from sklearn.model_selection import KFold

    if len(y) < 10:
        return []
    return [
        (np.concatenate([view[rows] for view in views]), tiled(y[rows], len(views)), views[0][out], likeliest(y)[out])
        for rows, out in KFold(5, shuffle=True, random_state=seed).split(y)
    ]


def tiled(y: np.ndarray, views: int) -> np.ndarray:
    """The targets of images that are there under so many views, one view after another."""
    return np.concatenate([y] * views)


def standardisation(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale per feature. The scale is the deviation, but at least its median over the features: a unit that is
    active on ImageNet's images and hardly on these has a deviation near zero, and dividing by it would let the head
    depend on its noise."""
    scale = x.std(0, dtype=np.float64)
    return x.mean(0, dtype=np.float64), np.maximum(scale, max(float(np.median(scale)), 1e-8))


@dataclass
class Space:
    """The features as the regression sees them: standardised, and rotated into as few dimensions as there are rows.

    The best weights are combinations of the rows, and neither the loss nor |W|² changes under a rotation, so with
    fewer images than features the problem has N dimensions, not D: the same optimum, several times faster.
    """

    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    z: np.ndarray  # (N, R) float64
    basis: np.ndarray | None  # (D, R), orthonormal columns; None: R = D, nothing was rotated

    @classmethod
    def of(cls, x: np.ndarray) -> Space:
        mean, scale = standardisation(x)
        z = (x - mean) / scale
        if len(x) >= x.shape[1]:
            return cls(mean, scale, z, None)
        basis, triangle = np.linalg.qr(z.T)
        return cls(mean, scale, np.ascontiguousarray(triangle.T), basis)

    def raw(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (C, R) and bias of this space as those of raw features: W' = W / scale, b' = b - W' mean."""
        weight = (weight if self.basis is None else weight @ self.basis.T) / self.scale
        return weight.astype(np.float32), (bias - weight @ self.mean).astype(np.float32)


def fit_head(
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    c: float,
    val: Sequence[np.ndarray] | None = None,
    space: Space | None = None,
    weights: np.ndarray | None = None,
    prior: Head | None = None,
) -> Head:
    """Multinomial logistic regression, L-BFGS from zero until it converges; weights on raw features.

    Minimises mean cross-entropy + |W|² / (2 C N) on standardised features, the objective of scikit-learn's
    `LogisticRegression(C)` divided by C N (which is as fast, but gives no loss per iteration). An image's cross-entropy
    counts with its class's share of `weights` (C,), scikit-learn's `class_weight`; with one if not given. With `val`,
    the head's `history` has the losses and accuracies after each iteration. With a `prior`, its logits are added, and W
    is what the head's weights differ from the prior's.
    """
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    space = space or Space.of(x)
    z = space.z
    n, d = z.shape  # d: the features, or as many directions as there are images
    target = np.eye(classes)[y] if y.ndim == 1 else y  # (N, C)
    target = target if weights is None else target * weights
    each = target.sum(1, keepdims=True)
    known = 0.0 if prior is None else prior.logits(x).astype(np.float64)  # (N, C)

    def unpack(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return flat[: classes * d].reshape(classes, d), flat[classes * d :]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = unpack(flat)
        logits = z @ weight.T + bias + known
        logits -= logits.max(1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(1, keepdims=True))
        residual = (np.exp(logits - log_sum) * each - target) / n
        loss = -(target * (logits - log_sum)).sum() / n + (weight**2).sum() / (2 * c * n)
        return loss, np.concatenate([(residual.T @ z + weight / (c * n)).ravel(), residual.sum(0)])

    history: list[dict[str, float]] = []

    def folded(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = space.raw(*unpack(flat))
        return (weight, bias) if prior is None else (weight + prior.weight, bias + prior.bias)

    def log_iteration(flat: np.ndarray) -> None:
        assert val is not None
        row: dict[str, float] = {"step": len(history) + 1}
        history.append(row | Head(*folded(flat), c).scores(train=(x, y), val=val))

    # one thread: the products are small, and waiting threads made it up to fifteen times slower
    with threadpool_limits(1, user_api="blas"):
        done = minimize(
            objective,
            np.zeros(classes * d + classes),
            jac=True,
            method="L-BFGS-B",
            callback=log_iteration if val is not None else None,  # it takes longer than the iterations themselves
            options={"maxiter": ITERATIONS, "gtol": 1e-6, "ftol": 1e-10},
        )
    if not done.success:
        logger.warning(f"the head's solver did not converge in {done.nit} iterations at C = {c:g}: {done.message}")
    return Head(*folded(done.x), c, history)


def self_train(
    head: Head,
    x: np.ndarray,
    y: np.ndarray,
    unlabelled: np.ndarray,
    weights: np.ndarray | None = None,
    prior: Head | None = None,
) -> Head:
    """The head fitted again to features (N, D) with labels and, with its own predictions for labels, those (M, D) that
    have none: first the quarter of each class's predictions that it is surest of, then half, then three quarters
    (curriculum labeling, Cascante-Bonilla et al. 2021). `y`, `weights` and `prior` as in `fit_head`."""
    first, classes = head, len(head.bias)
    labelled = np.eye(classes)[y] if y.ndim == 1 else y
    for share in SHARES:
        probs = head.probs(unlabelled)
        predicted, certainty = probs.argmax(1), probs.max(1)
        by_class = (np.flatnonzero(predicted == label) for label in range(classes))
        kept = np.concatenate([rows[np.argsort(-certainty[rows])[: math.ceil(share * len(rows))]] for rows in by_class])
        targets = np.concatenate([labelled, np.eye(classes)[predicted[kept]]])
        head = fit_head(np.concatenate([x, unlabelled[kept]]), targets, classes, head.c, None, None, weights, prior)
    return replace(first, weight=head.weight, bias=head.bias)


def put_head(model: Classifier, head: Head) -> None:
    """Write the head's weights into the network's own last layer."""
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(head.weight))
        model.head.bias.copy_(torch.from_numpy(head.bias))
