"""Checkpoints on disk: the weights, and beside them what training needs to go on. Safetensors only."""

import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from interp.atomic_files import write_atomically
from tasks.errors import InputError

CHECKPOINT_FOLDER = "checkpoints"
_WEIGHTS_NAME = re.compile(r"step-(\d{6,})\.safetensors")


def weights_path(folder: Path, step: int) -> Path:
    """Where a run folder keeps the weights after ``step`` updates.

    >>> weights_path(Path("run"), 120).name
    'step-000120.safetensors'
    """
    return folder / CHECKPOINT_FOLDER / f"step-{step:06d}.safetensors"


def state_path(folder: Path, step: int) -> Path:
    """Where a run folder keeps the optimiser's state after ``step`` updates."""
    return folder / CHECKPOINT_FOLDER / f"state-{step:06d}.safetensors"


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps that have a complete checkpoint, ascending.

    The weights are written last, so where they are, the checkpoint is complete.
    """
    names = (path.name for path in (folder / CHECKPOINT_FOLDER).glob("step-*"))
    return sorted(int(match[1]) for name in names if (match := _WEIGHTS_NAME.fullmatch(name)))


def save_checkpoint(
    folder: Path, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], facts: Mapping[str, str]
) -> None:
    """Write one checkpoint: first the state and the facts beside it, then the weights that make it count."""
    (folder / CHECKPOINT_FOLDER).mkdir(exist_ok=True)
    write_atomically(state_path(folder, step), _as_bytes(state, facts))
    write_atomically(weights_path(folder, step), _as_bytes(weights, {"step": str(step)}))


def load_weights(folder: Path, step: int, model: nn.Module) -> None:
    """Put a checkpoint's weights into the model.

    Raises:
        InputError: the file is missing or damaged, is another step's, or has a missing, extra, misshapen or
            differently typed tensor.
    """
    path = weights_path(folder, step)
    weights, facts = read_tensors(path)
    own = model.state_dict()
    for name in own.keys() & weights.keys():
        if own[name].dtype != weights[name].dtype:
            raise InputError(
                f"{path}: {name} is {weights[name].dtype}, the model's is {own[name].dtype}: "
                "it belongs to another model, restore the file"
            )
    try:
        model.load_state_dict(weights)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if facts.get("step") != str(step):
        raise InputError(
            f"{path} holds the weights of step {facts.get('step', 'unknown')}: it was swapped, restore the file"
        )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and the facts beside them.

    Raises:
        InputError: the file is missing, cut short or no safetensors file.
    """
    remedy = "restore it, or delete this step's two files to fall back on the checkpoint before"
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {remedy}") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged ({error}): {remedy}") from None


def _as_bytes(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    # Copies, because safetensors refuses tensors that share memory, as tied layers do.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, metadata=dict(facts))
