"""The training state: what a run needs to resume, in plain safetensors and JSON files.

`last/state.json` names the safetensors file that belongs to it and is replaced last, in one step:
whenever a run is killed, the folder holds one complete state. Training draws nothing from torch's
random generators, and each pair depends on the seed and its step alone, so the step is all that is
needed to restore the order of the data.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from d2net.errors import FormatError
from d2net.io.atomic import output_errors, replacing, write_text


@dataclass
class TrainingState:
    """The state of a run without its tensors.

    Attributes:
        settings: the run's settings, as `RunSettings.to_dict` gives them.
        start: name and sha256 of the starting weights.
        inputs: a record of each file that the run reads, see `record_files`.
        tensors: name of the file with the tensors; empty before the first checkpoint.
        step: number of finished steps.
        pairs: number of pairs that were trained on.
        seconds: duration of the run so far, without interruptions.
        validations: step and figures of each validation so far.
        best: the validation with the highest score, or None.
    """

    settings: dict[str, Any]
    start: dict[str, str]
    inputs: dict[str, str]
    tensors: str = ""
    step: int = 0
    pairs: int = 0
    seconds: float = 0.0
    validations: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None


def save_state(
    folder: Path, state: TrainingState, network: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Replace the state in a folder."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for parameter, name in _optimized(network, optimizer).items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = value
    data = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    # A new name for each step: the file that the current state.json names is never touched.
    state.tensors = f"state-{state.step:09d}.safetensors"
    with replacing(folder / state.tensors) as temporary:
        temporary.write_bytes(data)
    write_state(folder, state)
    with output_errors(folder):
        for old in folder.glob("state-*.safetensors"):
            if old.name != state.tensors:
                old.unlink()


def write_state(folder: Path, state: TrainingState) -> None:
    """Replace the state without its tensors."""
    write_text(folder / "state.json", json.dumps(asdict(state), indent=1))


def load_state(folder: Path) -> TrainingState | None:
    """Read the state in a folder without its tensors; None if there is no state."""
    path = folder / "state.json"
    if not path.exists():
        return None
    try:
        return TrainingState(**json.loads(path.read_text(encoding="utf-8")))
    except TypeError as error:
        raise FormatError(
            f"the training state {path} is damaged or of another version of d2net: resume it with "
            "that version, or choose another output"
        ) from error
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def restore_tensors(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load the tensors of a state into a network and its optimizer."""
    try:
        tensors = safetensors.torch.load(path.read_bytes())

        def below(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        network.load_state_dict(below("network."))
        names = _optimized(network, optimizer).values()
        states = [below(f"optimizer.{name}.") for name in names]
        optimizer.load_state_dict(
            {**optimizer.state_dict(), "state": {i: s for i, s in enumerate(states) if s}}
        )
    except (OSError, safetensors.SafetensorError, RuntimeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> FormatError:
    return FormatError(
        f"the training state {path} is damaged ({error}); choose another output to start over"
    )


def _optimized(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    """The optimizer's parameters in its order, with their names in the network."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {p: names[p] for group in optimizer.param_groups for p in group["params"]}
