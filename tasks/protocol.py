"""What a task is to the floors above: a distribution over prompts that can be written to a run folder and read back."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from tasks.prompts import Prompts, Seed

Predictor = Callable[[Prompts], Float[Tensor, "batch pos *d_out"]]
"""A reference in-context algorithm: what it would output in the model's place (log-probabilities, or real values)."""


@runtime_checkable
class Task(Protocol):
    """A distribution over prompts. Implementations are frozen dataclasses; see ``tasks.bigram`` for the first."""

    name: ClassVar[str]
    """The key in ``tasks.TASKS``, written to a run's config.json."""

    @property
    def n_ctx(self) -> int:
        """Positions of the longest prompt."""
        ...

    @property
    def d_vocab(self) -> int | None:
        """Number of tokens, or None for a task over real vectors."""
        ...

    @property
    def d_in(self) -> int | None:
        """Numbers per position of a task over real vectors, or None for one over tokens."""
        ...

    def at_step(self, step: int) -> "Task":
        """The task that training step ``step`` samples from: a curriculum's, or the task itself."""
        ...

    def sample(self, n: int, *, seed: Seed) -> Prompts:
        """Draw n prompts; the same seed gives the same prompts."""
        ...

    def counterfactual(self, prompts: Prompts, *, seed: Seed) -> Prompts:
        """The same prompts with the in-context answer re-drawn, aligned position by position."""
        ...

    def config(self) -> dict[str, Any]:
        """Every field as JSON values, but for what ``files`` holds."""
        ...

    def files(self) -> Mapping[str, bytes]:
        """What does not belong in JSON (corpus statistics): file names and contents, for the run folder."""
        ...

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes]) -> "Task":
        """The task that ``config`` and ``files`` describe; an unknown key is an InputError."""
        ...
