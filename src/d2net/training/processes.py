"""One process or many under torchrun, on Lightning Fabric."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch.distributed
from torch import Tensor

from d2net.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def launch(device: str) -> Fabric:
    """Set up this process and, under torchrun, connect it to the others of the run.

    Args:
        device: cpu, cuda, cuda:1 or mps. Under torchrun, which gives each process its own device,
            cpu or cuda.

    Raises:
        InputError: there is no such device.
        MissingPackageError: Lightning Fabric is not installed.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingPackageError(
            "training needs Lightning Fabric: pip install 'd2net[train]'"
        ) from error
    accelerator, _, index = device.partition(":")
    arguments: dict[str, Any] = {"devices": [int(index)] if index else 1}
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local, total = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        arguments = {"devices": local, "num_nodes": total // local, "strategy": "ddp"}
    try:
        fabric = Fabric(accelerator=accelerator, **arguments)
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot train on the device {device!r}: {reason}") from error
    return fabric


def mean_over_processes(values: Tensor, usable: Tensor) -> Tensor:
    """This process's contribution to the mean over the usable values of all processes.

    The gradients of the processes are averaged. For the result to be the gradient of the joint
    mean, each process counts for as many values as it has usable ones.

    Args:
        values: N losses, 0 where not usable.
        usable: N bool.
    """
    count, processes = usable.sum(), 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
        torch.distributed.all_reduce(count)
    return values.sum() * processes / count.clamp_min(1)
