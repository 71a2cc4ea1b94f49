"""What most tasks answer alike, so that a task of one's own is a dataclass with a vocabulary and a ``sample``."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from tasks.errors import InputError
from tasks.prompts import Prompts, Seed


class TaskDefaults:
    """A base for tasks of one's own whose fields are JSON values: it answers all but name, n_ctx, d_vocab and sample.

    The task is the same at every step, has no files, reads tokens (set ``d_in``, and ``d_vocab`` to None, for real
    vectors) and has no counterfactual. A subclass is a frozen dataclass, and replaces what is otherwise with it.

    >>> from dataclasses import dataclass
    >>> import numpy as np, torch
    >>> @dataclass(frozen=True)
    ... class Repeat(TaskDefaults):
    ...     seq_len: int = 8
    ...     name = "repeat"
    ...     d_vocab = 5
    ...     @property
    ...     def n_ctx(self):
    ...         return self.seq_len
    ...     def sample(self, n, *, seed):
    ...         tokens = np.random.default_rng(seed).integers(self.d_vocab, size=(n, 1)).repeat(self.seq_len, axis=1)
    ...         return Prompts.from_tensors(torch.from_numpy(tokens), seed=seed)
    >>> Repeat.from_config(Repeat(seq_len=6).config(), {}) == Repeat(seq_len=6)
    True
    """

    d_in: int | None = None

    def at_step(self, step: int) -> Any:  # noqa: ARG002 — a curriculum would look at it
        """The task itself: no curriculum."""
        return self

    def counterfactual(self, prompts: Prompts, *, seed: Seed) -> Prompts:  # noqa: ARG002 — as above
        """Refused: nothing is known of how these prompts could have been otherwise."""
        raise InputError(
            f"the task {_name(self)!r} defines no counterfactual: write one, or hand counterfactual prompts over"
        )

    def config(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)  # pyright: ignore[reportArgumentType] — subclasses are dataclasses

    def files(self) -> Mapping[str, bytes]:
        """Nothing: the fields say all."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes]) -> Any:
        """The task that ``config`` describes.

        Raises:
            InputError: an unknown key, or any file.
        """
        known = [field.name for field in fields(cls)]  # pyright: ignore[reportArgumentType]
        if unknown := sorted(set(config) - set(known)):
            raise InputError(f"the task {_name(cls)!r} has no field {unknown[0]!r}: its fields are {', '.join(known)}")
        if files:
            raise InputError(f"the task {_name(cls)!r} has no use for the file {min(files)!r}: remove it")
        return cls(**config)


def _name(task: object) -> str:
    return getattr(task, "name", type(task).__name__)
