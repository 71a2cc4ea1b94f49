"""Models as folders that can be shared: config.json and model.safetensors, here or on the Hugging Face hub."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.atomic_files import is_unfinished, write_atomically
from interp.hooked_transformer_config import HookedTransformerConfig
from tasks.errors import InputError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_CARD_FILE = "README.md"  # the hub's model card
_FORMAT = "icl-interp HookedTransformer 1"
_CARD = """---
{{ card_data }}
---
A HookedTransformer of icl-interp: `HookedTransformer.from_pretrained("…")` loads it with its hooks.
"""


Model = TypeVar("Model", bound="SharedModel")


class SharedModel(ModelHubMixin, model_card_template=_CARD, library_name="icl-interp"):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` for a model built from a HookedTransformerConfig.

    Nothing is unpickled, and nothing is loaded in part: an unknown key, or a missing, extra or misshapen tensor, is an
    error that names it.
    """

    cfg: HookedTransformerConfig

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config.json, model.safetensors and a model card to a folder that is empty, or holds such a model.

        ``options`` are those of huggingface_hub's ModelHubMixin, ``push_to_hub=True`` say.

        Raises:
            InputError: the folder is a run, or holds something else.
        """
        _refuse_foreign(Path(save_directory))  # before the mixin deletes a config.json that is there
        return super().save_pretrained(save_directory, **options)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Model:
        """The model in a folder, or in a repository of the Hugging Face hub ("user/name"), on the CPU.

        Raises:
            InputError: there is no such folder or repository, it cannot be reached, or it holds no such model.
        """
        options = {"revision": revision, "cache_dir": cache_dir, "force_download": force_download}
        options |= {"token": token, "local_files_only": local_files_only}
        if not isinstance(pretrained_model_name_or_path, str | Path) or not str(pretrained_model_name_or_path):
            raise InputError(
                f"{pretrained_model_name_or_path!r:.60} names no model: give a folder, or a hub repository user/name"
            )
        return cls._from_pretrained(model_id=str(pretrained_model_name_or_path), **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        record = {"format": _FORMAT, "model": asdict(self.cfg)}
        # Copies, because safetensors refuses tensors that share memory, as tied layers do.
        module: Any = self
        weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()}
        write_atomically(save_directory / WEIGHTS_FILE, safetensors.torch.save(weights))
        write_atomically(save_directory / CONFIG_FILE, json.dumps(record, indent=2).encode())

    @classmethod
    def _from_pretrained(cls: type[Model], *, model_id: str, **options: Any) -> Model:  # pyright: ignore
        config_file, weights_file = _files(model_id, options)
        cfg = _read_config(config_file)
        weights = _read_weights(weights_file)
        build: Any = cls
        model = build(cfg).to(_dtype(weights, weights_file))
        try:
            model.load_state_dict(weights)
        except InputError as error:
            raise InputError(f"{weights_file}: {error}") from None
        return model


def _files(model_id: str, options: Mapping[str, Any]) -> tuple[Path, Path]:
    folder = Path(model_id)
    if folder.is_dir():
        return folder / CONFIG_FILE, folder / WEIGHTS_FILE
    is_path = folder.is_absolute() or model_id.startswith((".", "~")) or model_id.endswith("/") or "\\" in model_id
    # A mistyped folder beside others that are there; the hub would be asked, and asked again, for seconds.
    beside_others = len(folder.parts) > 1 and Path(folder.parts[0]).exists()
    if folder.exists() or is_path or beside_others or model_id.count("/") > 1:
        raise InputError(f"{model_id} is no folder: give one that save_pretrained wrote, or a hub repository user/name")
    try:
        return tuple(Path(hf_hub_download(model_id, name, **options)) for name in (CONFIG_FILE, WEIGHTS_FILE))  # pyright: ignore
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{model_id} is no folder here, and the hub gives no model of that name ({reason}): check the name, the "
            "connection and, for a private repository, token="
        ) from None


def _read_config(path: Path) -> HookedTransformerConfig:
    found = _json(path)
    if "train" in found and "task" in found:
        raise InputError(f"{path.parent} is a run: use Run.load(path).model")
    if found.get("format") != _FORMAT:
        raise InputError(
            f"{path} does not describe a saved HookedTransformer: load a model of another library with that library, "
            "TransformerLens' TransformerBridge.boot_transformers say"
        )
    if found.keys() != {"format", "model"} or not isinstance(found["model"], dict):
        raise InputError(f"{path} must hold format and model, and holds {', '.join(sorted(found))}: restore it")
    try:
        return HookedTransformerConfig(**found["model"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give a folder that save_pretrained wrote") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object: restore it")
    return found


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give a folder that save_pretrained wrote") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged ({error}): restore it") from None


def _dtype(weights: Mapping[str, Tensor], path: Path) -> Any:
    dtypes = {str(weight.dtype): weight.dtype for weight in weights.values()}
    if len(dtypes) != 1 or not next(iter(dtypes.values())).is_floating_point:
        raise InputError(f"{path} holds {', '.join(sorted(dtypes)) or 'nothing'}: weights are of one floating type")
    return next(iter(dtypes.values()))


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder to save the model in")
    own = (CONFIG_FILE, WEIGHTS_FILE, _CARD_FILE)
    others = sorted(path.name for path in folder.iterdir() if path.name not in own and not is_unfinished(path))
    if others:
        raise InputError(f"{folder} holds other files ({others[0]}): choose an empty folder, or a new one")
    if (folder / CONFIG_FILE).exists() and _json(folder / CONFIG_FILE).get("format") != _FORMAT:
        raise InputError(f"{folder} holds something else, its config.json would be lost: choose an empty folder")
    if not (folder / CONFIG_FILE).exists() and (folder / _CARD_FILE).exists():
        raise InputError(f"{folder} holds other files ({_CARD_FILE}): choose an empty folder, or a new one")
