"""Several processes as one: `torchrun … -m roclab vision train …` trains on many GPUs, or on many machines.

Every process holds the model and takes its share of each batch; gradients and BatchNorm statistics are averaged over
all, so the run is the one a single process would have made, up to the order of floating-point sums. Rank 0 alone
writes the run folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from roclab.core.exceptions import RocLabError

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """This process's part of a batch: contiguous, so that neighbours stay together."""
        each = -(-len(items) // self.size)
        return items[self.rank * each : (self.rank + 1) * each]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order of rank, in every process."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """Rank 0's value, in every process."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def main_first(self, work: Callable[[], T]) -> T:
        """`work()` in every process, in rank 0 before the others: what it downloads or installs is there for them."""
        found = work() if self.main else None
        self.from_main(None)
        return found if found is not None else work()


def join() -> World:
    """Join the processes that torchrun started, or be alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    import torch
    import torch.distributed as dist

    # Before there is a group: this module's functions take the group of the moment as a default argument, and a group
    # that they hold outlives `leave`. Its threads then run into the interpreter's end, which now and then aborts.
    import torch.distributed.nn.functional

    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        try:
            dist.init_process_group("nccl" if cuda else "gloo")
        except (RuntimeError, ValueError) as error:
            raise RocLabError(f"the {size} processes could not meet: {error}; start them with torchrun") from None
    return World(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Part from the other processes."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wrap(module: nn.Module, device: torch.device) -> nn.Module:
    """The module under DistributedDataParallel."""
    from torch.nn.parallel import DistributedDataParallel

    ids = [device.index] if device.type == "cuda" else None
    # buffers are alike in all processes already: their statistics are those of the whole batch
    return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


def synced_batch_norm(module: nn.Module) -> None:
    """Make every BatchNorm in `module` take the statistics of the whole batch, over all processes.

    Torch's own SyncBatchNorm needs GPUs; this one is plain arithmetic with a differentiable all_reduce and runs on
    any backend. Parameters, buffers and their names stay as they were.
    """
    from torch import nn

    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.forward = partial(_synced, child)  # type: ignore[method-assign]


def _synced(norm: Any, x: torch.Tensor) -> torch.Tensor:
    import torch
    import torch.distributed as dist
    from torch.distributed.nn.functional import all_reduce

    if not norm.training:
        return type(norm).forward(norm, x)
    axes = [0, *range(2, x.ndim)]
    shape = (1, -1) + (1,) * (x.ndim - 2)
    count = torch.tensor([float(x.numel() // x.shape[1])], device=x.device)
    sums = all_reduce(torch.cat([count, x.sum(axes)]), op=dist.ReduceOp.SUM)
    n = sums[:1]
    mean = sums[1:] / n
    centred = x - mean.view(shape)  # in two passes: a difference of large squares would lose the digits
    var = all_reduce((centred * centred).sum(axes), op=dist.ReduceOp.SUM) / n
    with torch.no_grad():
        norm.num_batches_tracked += 1
        share = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(var * n / (n - 1), share)
    scale = norm.weight * torch.rsqrt(var + norm.eps)
    out = centred * scale.view(shape) + norm.bias.view(shape)
    # timm's BatchNormAct2d does its activation inside
    return norm.act(norm.drop(out)) if hasattr(norm, "act") and hasattr(norm, "drop") else out
