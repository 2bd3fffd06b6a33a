"""Where a run stands, in plain files: safetensors for numbers, JSON for everything else.

`last/state.json` names the safetensors file that belongs to it and is replaced last, in one step:
whatever is killed when, the folder holds one whole state. Training draws nothing from torch's
generators, and each pair is decided by the seed and its step alone, so that the step is all there
is to restore of the data's order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from d2net.errors import FormatError
from d2net.io.atomic import output_errors, replacing

_STATE = "state.json"


@dataclass
class Standing:
    """Where a run stands.

    Attributes:
        settings: of the run, as `TrainingSettings.to_dict`.
        start: name and sha256 of the weights it started from.
        normalisation: name of what the weights want.
        step: steps done.
        pairs: pairs learnt from.
        seconds: of all its sittings.
        validations: step and figures of every validation so far.
        best: the one with the highest score, or None.
    """

    settings: dict[str, Any]
    start: dict[str, str]
    normalisation: str
    step: int = 0
    pairs: int = 0
    seconds: float = 0.0
    validations: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None


def save(
    folder: Path, standing: Standing, network: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Replace the state in a folder.

    Raises:
        OutputError: it cannot be written; the state before is still whole.
    """
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for parameter, name in _named(network, optimizer).items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = value
    data = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # two names in turn: the one that the state in force refers to is never touched
    name = f"state-{standing.step:09d}.safetensors"
    with replacing(folder / name) as temporary:
        temporary.write_bytes(data)
    text = json.dumps({"tensors": name, **asdict(standing)}, indent=1)
    with replacing(folder / _STATE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with output_errors(folder):
        for old in folder.glob("state-*.safetensors"):
            if old.name != name:
                old.unlink()


def find(folder: Path) -> Standing | None:
    """The standing of the run whose state is in a folder; None where there is no state.

    Raises:
        FormatError: it is damaged.
    """
    if not (folder / _STATE).exists():
        return None
    values = _read(folder)
    values.pop("tensors")
    return Standing(**values)


def restore(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the state in a folder into a network and its optimizer.

    Raises:
        FormatError: it is damaged or of another network.
    """
    path = folder / str(_read(folder)["tensors"])
    try:
        tensors = safetensors.torch.load(path.read_bytes())
        network.load_state_dict(_below("network.", tensors))
        names = list(_named(network, optimizer).values())
        states = [_below(f"optimizer.{name}.", tensors) for name in names]
        optimizer.load_state_dict(
            {**optimizer.state_dict(), "state": {i: s for i, s in enumerate(states) if s}}
        )
    except (OSError, safetensors.SafetensorError, RuntimeError, ValueError) as error:
        raise _damaged(path, error) from error


def _read(folder: Path) -> dict[str, Any]:
    path = folder / _STATE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        Standing(**{key: value for key, value in values.items() if key != "tensors"})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    return dict(values)


def _damaged(path: Path, error: Exception) -> FormatError:
    return FormatError(
        f"the state of the run in {path} is damaged ({error}); delete the folder to start anew"
    )


def _named(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    """What an optimizer optimises, in its order, with the network's names."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {p: names[p] for group in optimizer.param_groups for p in group["params"]}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
