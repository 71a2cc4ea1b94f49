"""Checkpoints on disk: the weights, and beside them what training needs to go on. Safetensors only.

``manifest.json`` beside them holds the sha256 of each file, so that a damaged or swapped one is recognised.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from interp.atomic_files import make_folder, write_atomically
from tasks.errors import InputError

CHECKPOINT_FOLDER = "checkpoints"
MANIFEST_FILE = "manifest.json"
_REMEDY = "restore it, or delete this step's two files to fall back on the checkpoint before"
_FILE_NAME = re.compile(r"(?:step|state)-\d{6,}\.safetensors")
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
    """Write one checkpoint: the state and the facts beside it, the checksums, and last the weights that make it count.

    Raises:
        InputError: the disk is full, or the like; the checkpoints before are whole.
    """
    make_folder(folder / CHECKPOINT_FOLDER)
    contents = {
        state_path(folder, step): _as_bytes(state, facts),
        weights_path(folder, step): _as_bytes(weights, {"step": str(step)}),
    }
    sums = checksums(folder)
    if sums is None:  # a new run, or one of a version that kept no checksums: its files are taken as they are
        sums = {path.name: _digest(path.read_bytes()) for path in _files(folder)}
    sums |= {path.name: _digest(content) for path, content in contents.items()}
    manifest = json.dumps({"format": 1, "sha256": dict(sorted(sums.items()))}, indent=2).encode()
    (state_file, state_bytes), (weights_file, weights_bytes) = contents.items()
    write_atomically(state_file, state_bytes)
    write_atomically(folder / CHECKPOINT_FOLDER / MANIFEST_FILE, manifest)
    write_atomically(weights_file, weights_bytes)


def checksums(folder: Path) -> dict[str, str] | None:
    """The sha256 of every checkpoint file by its name, as they were written; None for a run that kept none.

    Raises:
        InputError: the manifest is damaged.
    """
    path = folder / CHECKPOINT_FOLDER / MANIFEST_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sums = found["sha256"]
        if found["format"] != 1 or not all(isinstance(entry, str) for entry in sums.values()):
            raise ValueError("it has another format")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}): restore it, or delete it to do without checksums") from None
    return dict(sums)


Verdict = Literal["intact", "no checksum", "changed", "missing"]


def verdicts(folder: Path) -> dict[str, Verdict]:
    """What each file of every checkpoint is, compared with its checksum; all of them are read.

    Raises:
        InputError: the manifest is damaged.
    """
    sums = checksums(folder)
    found: dict[str, Verdict] = {}
    for step in checkpoint_steps(folder):  # what a crash left of any other step counts for nothing
        for path in (state_path(folder, step), weights_path(folder, step)):
            if not path.exists():
                if path.name in (sums or {}):
                    found[path.name] = "missing"
            elif sums is None:
                found[path.name] = "no checksum"
            else:
                intact = _digest(path.read_bytes()) == sums.get(path.name)
                found[path.name] = "intact" if intact else "changed"
    return found


def refuse_changed(path: Path) -> None:
    """Raise InputError if a checkpoint's file is not the one that was written; asked last, after more telling tests.

    A run of a version that kept no checksums passes; ``verdicts`` says so.
    """
    sums = checksums(path.parents[1])
    if sums is not None and _digest(path.read_bytes()) != sums.get(path.name):
        what = "its sha256 differs from" if path.name in sums else "it is not in"
        raise InputError(f"{path} is not the file that was written ({what} {MANIFEST_FILE}): {_REMEDY}")


def load_weights(folder: Path, step: int, model: nn.Module) -> None:
    """Put a checkpoint's weights into the model.

    Raises:
        InputError: the file is missing or damaged, is another step's, has a missing, extra, misshapen or differently
            typed tensor, or is not the one that was written.
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
    refuse_changed(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and the facts beside them.

    Raises:
        InputError: the file is missing, cut short or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {_REMEDY}") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged ({error}): {_REMEDY}") from None


def _as_bytes(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    # Copies, because safetensors refuses tensors that share memory, as tied layers do.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, metadata=dict(facts))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / CHECKPOINT_FOLDER).glob("st*") if _FILE_NAME.fullmatch(path.name))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
