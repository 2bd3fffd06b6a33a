"""One process or many: what torchrun started, on Lightning Fabric."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from d2net.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def launch(device: str) -> Fabric:
    """The engine of this process and, under torchrun, of all others that train with it.

    Args:
        device: cpu, cuda, cuda:1 or mps; under torchrun, which gives each process its own, cpu or
            cuda.

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
    kind, _, index = device.partition(":")
    arguments: dict[str, Any] = {"devices": [int(index)] if index else 1}
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        arguments = {"devices": here, "num_nodes": everywhere // here, "strategy": "ddp"}
    try:
        fabric = Fabric(accelerator=kind, **arguments)
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot train on the device {device!r}: {reason}") from error
    return fabric
