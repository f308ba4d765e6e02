"""Feature extraction: the backbone sees each image once, the head trains on what it saw.

`cached_features` keeps the features of a list of images under a key of everything that decides them, in chunks, so
that a killed extraction goes on where it stopped. `fit_head` is multinomial logistic regression on standardised
features; `fold` turns it into the weights of one `nn.Linear`, so that the outcome is a whole model.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from roclab.core.exceptions import RocLabError
from roclab.core.files import atomic_write, cache_folder, read_json, write_json
from roclab.core.progress import track
from roclab.core.training.memory import freed_memory_kept

if TYPE_CHECKING:
    import torch

    from roclab.vision.data.dataset import Dataset, LabelledImage
    from roclab.vision.models.classifier import Classifier

CHUNK = 16  # images; also the batch of the backbone, so the same images meet in the same batch whatever was cached
FORMAT = 2  # raise it when the way features are computed changes


@freed_memory_kept()
def cached_features(
    model: Classifier,
    images: Sequence[LabelledImage],
    image_size: int,
    view: int = 0,
    flips: str = "horizontal",
    say: Callable[[str], None] | None = None,
) -> tuple[np.ndarray, float]:
    """Features (N, D) float32 of the images under one view, and the seconds the backbone took (when it ran).

    View 0 is the evaluation transform; view 1 its mirror image (with `flips` "dihedral", views 1 to 7 are the square's
    other symmetries); any further view a random crop that is the same in every run. The key is made of the model, its
    weights' hash, the transform and every image's hash.
    """
    import torch
    from safetensors.torch import load_file, save

    key = {
        "format": [FORMAT, CHUNK],
        "model": model.name,
        "weights": model.weights_id,
        "recipe": asdict(model.recipe),
        "image_size": image_size,
        "view": [view, flips] if view > 1 else view,  # both kinds have the first two in common
        "images": [image.sha256 for image in images],
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder("features") / digest
    chunks = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
    paths = [folder / f"{i:05d}.safetensors" for i in range(len(chunks))]
    seconds = float(read_json(folder / "seconds.json")) if (folder / "seconds.json").exists() else 0.0

    found: list[np.ndarray | None] = []
    for path, chunk in zip(paths, chunks, strict=True):
        try:
            values = load_file(path)["features"].numpy()
            found.append(values if len(values) == len(chunk) else None)
        except Exception:  # missing or damaged: computed again below
            found.append(None)
    missing = [i for i, values in enumerate(found) if values is None]
    if not missing:
        return np.concatenate([values for values in found if values is not None]), seconds

    if say:
        say(f"features: {sum(len(chunks[i]) for i in missing)} images, {model.name}, {image_size} px, view {view}")
    device = next(model.module.parameters()).device
    model.module.eval()
    begin = time.perf_counter()
    batches = read_ahead(
        [chunks[i] for i in missing], lambda images: _view_batch(model, images, image_size, view, flips)
    )
    for i, batch in zip(missing, track(batches, f"features (view {view})", len(missing)), strict=True):
        with torch.inference_mode():
            out = model.features(batch.to(device).contiguous(memory_format=torch.channels_last))
        out = out.float().cpu().contiguous()
        found[i] = out.numpy()
        atomic_write(paths[i], save({"features": out}))
    seconds += time.perf_counter() - begin
    write_json(folder / "seconds.json", seconds)
    return np.concatenate([values for values in found if values is not None]), seconds


def dataset_features(
    model: Classifier, dataset: Dataset, image_size: int, view: int = 0, say: Callable[[str], None] | None = None
) -> tuple[dict[str, np.ndarray], float]:
    """Features (N, D) of "train" and "val" under a view, and the seconds the backbone took.

    They are extracted in the order of the images' hashes: runs with other seeds cut the same images in another way,
    and all of them share one extraction.
    """
    everyone = sorted(dataset.images, key=lambda image: (image.sha256, str(image.path)))
    features, seconds = cached_features(model, everyone, image_size, view, dataset.flips, say)
    row_of = {image.path: i for i, image in enumerate(everyone)}
    return {
        split: features[[row_of[image.path] for image in dataset.split(split)]] for split in ("train", "val")
    }, seconds


def labels_of(images: Sequence[LabelledImage]) -> np.ndarray:
    """Labels (N,) of images."""
    return np.array([image.label for image in images])


def read_ahead(chunks: Sequence[Any], read: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield `read(chunk)` in order, reading the next chunk in a thread while the caller works on this one."""
    with ThreadPoolExecutor(1) as thread:
        pending = None
        for chunk in chunks:
            current, pending = pending, thread.submit(read, chunk)
            if current is not None:
                yield current.result()
        if pending is not None:
            yield pending.result()


def _view_batch(
    model: Classifier, images: Sequence[LabelledImage], image_size: int, view: int, flips: str
) -> torch.Tensor:
    """(B, 3, S, S) of the images under a view."""
    import torch

    from roclab.vision.data.dataset import open_image
    from roclab.vision.data.transforms import eval_transform, train_transform

    if view < (8 if flips == "dihedral" else 2):
        transform, least = eval_transform(model.recipe, image_size), model.recipe.resize_for(image_size)
        batch = torch.stack([transform(open_image(image.path, at_least=least)) for image in images])
        batch = batch.transpose(2, 3) if view & 4 else batch
        return batch.flip([axis for axis, bit in ((3, 1), (2, 2)) if view & bit])
    transform = train_transform(model.recipe, image_size, flips=flips)
    views = []
    with torch.random.fork_rng(devices=[]):
        for image in images:
            torch.manual_seed(int(image.sha256[:12], 16) + view)  # of the image alone: the same whoever is beside it
            views.append(transform(open_image(image.path, at_least=2 * image_size)))
    return torch.stack(views)


@dataclass
class Head:
    """A linear classifier on raw features: `logits = x @ weight.T + bias`."""

    weight: np.ndarray  # (C, D) float32
    bias: np.ndarray  # (C,)
    c: float  # inverse regularisation strength, as scikit-learn counts it
    history: list[dict[str, float]] = field(default_factory=list)  # one row per epoch (L-BFGS step)
    tried: list[dict[str, float]] = field(default_factory=list)  # one row per regularisation

    def probs(self, x: np.ndarray) -> np.ndarray:
        """(N, C) class probabilities of raw features (N, D)."""
        return softmax(x @ self.weight.T + self.bias)


def softmax(logits: np.ndarray) -> np.ndarray:
    from scipy.special import softmax as row_softmax

    return row_softmax(logits.astype(np.float64), axis=1)


CS = tuple(float(c) for c in np.round(10.0 ** np.arange(-5, 1.01, 0.5), 8))


Cut = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # x (N, D), y (N,), x_val (M, D), y_val (M,)


def choose_head(cut: Cut, classes: int, epochs: int, more: Sequence[Cut] = (), cs: Sequence[float] = CS) -> Head:
    """The head fitted to the cut's training images with the C whose loss on validation images is lowest.

    The loss and not the accuracy: on fifty validation images several C tie in accuracy, and the loss still tells them
    apart. `more` are further cuts of the same images (cross-validation), over which the loss is averaged.
    """
    spaces = [Space.of(x) for x, *_ in (cut, *more)]
    tried: list[dict[str, float]] = []
    for c in sorted(cs):  # from strong to weak: once the loss has risen twice in a row, weaker ones only overfit more
        scores = []
        for (x, y, x_val, y_val), space in zip((cut, *more), spaces, strict=True):
            scores.append(loss_and_accuracy(fit_head(x, y, classes, c, epochs, space=space).probs(x_val), y_val))
        loss, accuracy = np.mean(scores, axis=0)
        tried.append({"c": c, "val_loss": float(loss), "val_top1": float(accuracy)})
        if len(tried) > 2 and tried[-3]["val_loss"] < tried[-2]["val_loss"] < loss:
            break
    chosen = min(tried, key=lambda row: row["val_loss"])
    if not np.isfinite(chosen["val_loss"]):
        raise RocLabError("the head's training diverged at every regularisation: are there NaN among the features?")
    x, y, x_val, y_val = cut
    head = fit_head(x, y, classes, chosen["c"], epochs, (x_val, y_val), spaces[0])
    head.tried = tried
    return head


FEW = 500  # validation images; with fewer, one cut's loss says little about C


def further_cuts(views: Sequence[np.ndarray], y: np.ndarray, seed: int, folds: int = 5) -> list[Cut]:
    """`folds` cuts of the images, each image validating in one of them. `views` are (N, D) features under each view:
    all of them train, the first validates."""
    from sklearn.model_selection import KFold

    if len(y) < 2 * folds:
        return []
    return [
        (np.concatenate([view[rows] for view in views]), np.tile(y[rows], len(views)), views[0][out], y[out])
        for rows, out in KFold(folds, shuffle=True, random_state=seed).split(y)
    ]


def standardisation(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale per feature. The scale is the deviation, but at least its median over the features: a unit that
    ImageNet's images switch on and these hardly do has a deviation near nothing, and dividing by it would make the
    head hang on its noise."""
    scale = x.std(0, dtype=np.float64)
    return x.mean(0, dtype=np.float64), np.maximum(scale, max(float(np.median(scale)), 1e-8))


@dataclass
class Space:
    """The features as the regression sees them: standardised, and turned into as few dimensions as there are rows.

    The best weights are combinations of the rows, and neither the loss nor |W|² changes under a rotation, so with
    fewer images than features the problem has N dimensions, not D: the same optimum, several times sooner.
    """

    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    z: np.ndarray  # (N, R) float64
    basis: np.ndarray | None  # (D, R), orthonormal columns; None: R = D, nothing was turned

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
    epochs: int = 100,
    val: tuple[np.ndarray, np.ndarray] | None = None,
    space: Space | None = None,
) -> Head:
    """Multinomial logistic regression, L-BFGS from zero, at most `epochs` steps; weights on raw features.

    Minimises mean cross-entropy + |W|² / (2 C N) on standardised features, the objective of scikit-learn's
    `LogisticRegression(C)` divided by C N. One step passes over all features about once, so a step is an epoch;
    `history` holds the losses and accuracies after each.
    """
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    space = space or Space.of(x)
    z = space.z
    n, d = z.shape  # d: the features, or as many directions as there are images
    target = np.eye(classes)[y]  # (N, C)

    def unpack(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return flat[: classes * d].reshape(classes, d), flat[classes * d :]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = unpack(flat)
        logits = z @ weight.T + bias
        logits -= logits.max(1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(1, keepdims=True))
        residual = (np.exp(logits - log_sum) - target) / n
        loss = -(target * (logits - log_sum)).sum() / n + (weight**2).sum() / (2 * c * n)
        return loss, np.concatenate([(residual.T @ z + weight / (c * n)).ravel(), residual.sum(0)])

    history: list[dict[str, float]] = []
    head = Head(np.zeros((classes, x.shape[1])), np.zeros(classes), c, history)

    def keep(flat: np.ndarray) -> None:
        assert val is not None
        head.weight, head.bias = space.raw(*unpack(flat))
        row: dict[str, float] = {}
        for name, (features, labels) in (("train", (x, y)), ("val", val)):
            row[f"{name}_loss"], row[f"{name}_top1"] = loss_and_accuracy(head.probs(features), labels)
        history.append(row)

    # one thread: the products are small, and threads that wait for each other made it up to fifteen times slower
    with threadpool_limits(1, user_api="blas"):
        done = minimize(
            objective,
            np.zeros(classes * d + classes),
            jac=True,
            method="L-BFGS-B",
            callback=keep if val is not None else None,  # the curves cost more than the steps themselves
            options={"maxiter": epochs, "gtol": 1e-6, "ftol": 1e-10},
        )
    head.weight, head.bias = space.raw(*unpack(done.x))
    return head


def loss_and_accuracy(probs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross-entropy (nats) and share of images called rightly."""
    chosen = np.clip(probs[np.arange(len(labels)), labels], 1e-12, None)
    return float(-np.log(chosen).mean()), float((probs.argmax(1) == labels).mean())


def put_head(model: Classifier, head: Head) -> None:
    """Write the head's weights into the model's own last layer."""
    import torch

    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(head.weight))
        model.head.bias.copy_(torch.from_numpy(head.bias))
