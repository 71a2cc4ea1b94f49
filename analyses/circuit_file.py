"""A circuit as a JSON file: strict to read, whole or absent when written."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analyses.edges import Anatomy
from interp.atomic_files import write_atomically
from tasks.errors import InputError

_FORMAT, _VERSION = "interp circuit", 1
_Edge = tuple[str, str, str]


def write(path: Path, anatomy: Anatomy, edges: Sequence[_Edge], scores: Mapping[Any, float]) -> None:
    """Write the file, in full or not at all.

    Raises:
        InputError: it exists, or its folder does not.
    """
    if path.exists():
        raise InputError(f"{path} exists: choose another name, or remove it first")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder: make it first")
    about = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": {
            "n_layers": anatomy.n_layers,
            "n_heads": anatomy.n_heads,
            "mlp_layers": list(anatomy.mlp_layers),
            "embeddings": list(anatomy.embeddings),
            "parallel_attn_mlp": anatomy.parallel,
        },
        "edges": [[*edge] for edge in edges],
        "scores": [scores.get(edge) for edge in edges],
    }
    lines = json.dumps(about, indent=1, ensure_ascii=False)
    write_atomically(path, (lines + "\n").encode())


def read(path: Path) -> tuple[Anatomy, list[_Edge], dict[_Edge, float]]:
    """The anatomy, the edges and their scores, as far as a file can be judged by its form.

    Raises:
        InputError: no such file, or one that holds anything but a circuit.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{path} is no JSON: give a file that Circuit.save wrote") from None
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise InputError(f"{path} is no circuit: give a file that Circuit.save wrote")
    if data.get("version") != _VERSION:
        raise InputError(f"{path} has version {data.get('version')!r}: this reads version {_VERSION}")
    _check_keys(path, data, ("format", "version", "model", "edges", "scores"))
    anatomy = _anatomy(path, data["model"])
    edges, scores = data["edges"], data["scores"]
    if not isinstance(edges, list) or not isinstance(scores, list) or len(edges) != len(scores):
        raise InputError(f"{path}: edges and scores must be lists of one length")
    found: list[_Edge] = []
    for edge in edges:
        if not isinstance(edge, list) or len(edge) != 3 or not all(isinstance(part, str) for part in edge):
            raise InputError(f"{path}: {edge!r} is no edge, which is [sender, receiver, input]")
        found.append((edge[0], edge[1], edge[2]))
    if len(set(found)) < len(found):
        raise InputError(f"{path} names an edge twice")
    for score in scores:
        if score is not None and (isinstance(score, bool) or not isinstance(score, (int, float)) or math.isnan(score)):
            raise InputError(f"{path}: {score!r} is no score, which is a number or null")
    return anatomy, found, {edge: score for edge, score in zip(found, scores, strict=True) if score is not None}


def _anatomy(path: Path, data: Any) -> Anatomy:
    if not isinstance(data, dict):
        raise InputError(f"{path}: model is {data!r}, which is no set of sizes")
    _check_keys(path, data, ("n_layers", "n_heads", "mlp_layers", "embeddings", "parallel_attn_mlp"))
    n_layers, n_heads, mlps, embeddings = (data[key] for key in ("n_layers", "n_heads", "mlp_layers", "embeddings"))
    fits = all(type(n) is int and n >= 1 for n in (n_layers, n_heads)) and type(data["parallel_attn_mlp"]) is bool
    fits = fits and isinstance(mlps, list) and all(type(layer) is int and 0 <= layer < n_layers for layer in mlps)
    fits = fits and mlps == sorted(set(mlps)) and embeddings in (["embed"], ["embed", "pos_embed"])
    if not fits:
        raise InputError(f"{path}: model is {data!r}, which is no anatomy of a transformer")
    return Anatomy(n_layers, n_heads, tuple(mlps), tuple(embeddings), data["parallel_attn_mlp"])


def _check_keys(path: Path, data: Mapping[str, Any], expected: Sequence[str]) -> None:
    if unknown := sorted(set(data) - set(expected)):
        raise InputError(f"{path} holds {unknown[0]!r}, which a circuit has not")
    if missing := [key for key in expected if key not in data]:
        raise InputError(f"{path} lacks {missing[0]!r}")
