"""The control that learned nothing: a model's untrained twin."""

from dataclasses import replace

from interp.hooked_transformer import HookedTransformer
from interp.model_adapter import HookedModel
from tasks.errors import InputError

UNTRAINED_SEED = 1_000_000
"""Far from the seeds people give their runs, so that a twin is never the model itself."""
NO_TWIN = "no untrained twin: one can be made of a HookedTransformer only"


def untrained_twin(model: HookedModel, seed: int | None) -> HookedTransformer | None:
    """A model of the same architecture with fresh weights; None without a seed, or where none can be made.

    Raises:
        InputError: the model itself was drawn with this seed.

    >>> from interp import HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=4, n_ctx=3, d_vocab=5, attn_only=True))
    >>> bool((untrained_twin(model, 1).W_E == model.W_E).any())
    False
    """
    if seed is None or not isinstance(model, HookedTransformer):
        return None
    if seed == model.cfg.seed:
        raise InputError(f"untrained_seed = {seed} is the model's own seed: give another, or None for no twin")
    return HookedTransformer(replace(model.cfg, seed=seed)).to(model.W_U)
