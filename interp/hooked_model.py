"""What interventions and analyses ask of a model: TransformerLens' hooks, whoever built it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from transformer_lens.hook_points import HookPoint


@runtime_checkable
class HookedModel(Protocol):
    """A model with TransformerLens' hook interface: HookedTransformer, or one of TransformerLens' own classes."""

    @property
    def cfg(self) -> Any:
        """The architecture: n_layers, n_heads and so on."""
        ...

    @property
    def hook_dict(self) -> Mapping[str, HookPoint]:
        """The hook points by name."""
        ...

    def hooks(self, fwd_hooks: Any = ..., bwd_hooks: Any = ..., **options: Any) -> AbstractContextManager[Any]:
        """Hold hooks in place for a with-block."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
