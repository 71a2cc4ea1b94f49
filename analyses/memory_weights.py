"""The weights that memories are read from, taken out of a model and made comparable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from interp.hooked_transformer import HookedTransformer
from interp.initialisation import matching_parameters
from interp.model_adapter import HookedModel, named_weights, needed_weight, weight
from interp.sites import Site, SiteLike
from tasks.errors import InputError
from tasks.protocol import Task

Head = tuple[int, int]

_MOST_SCORES = 2**28  # one table of scores: 1 GiB in float32


@dataclass(frozen=True, eq=False)
class CircuitWeights:
    """The weights of embeddings and heads, detached, on the CPU, in float32 or better.

    Attributes:
        W_pos: None if positions are no vectors added to the residual.
        W_F: the linear feed-forward memories by layer.
    """

    W_E: Float[Tensor, "vocab d_model"]
    W_pos: Float[Tensor, "n_ctx d_model"] | None
    W_U: Float[Tensor, "d_model vocab_out"]
    W_Q: Float[Tensor, "layer head d_model d_head"]
    W_K: Float[Tensor, "layer head d_model d_head"]
    W_V: Float[Tensor, "layer head d_model d_head"]
    W_O: Float[Tensor, "layer head d_head d_model"]
    W_F: dict[int, Float[Tensor, "d_model d_model"]]

    @classmethod
    def of(cls, model: HookedModel) -> "CircuitWeights":
        """Read a model that has TransformerLens' parameter names.

        Raises:
            InputError: the model reads no tokens, or lacks a parameter.
        """
        names = ("W_E", "W_U", "W_Q", "W_K", "W_V", "W_O")
        found = {name: _comparable(needed_weight(model, name)) for name in names}
        if found["W_K"].shape != found["W_Q"].shape:
            raise InputError(
                f"W_K is {list(found['W_K'].shape)} but W_Q is {list(found['W_Q'].shape)}: memories are read from "
                "heads with keys of their own, not from grouped-query attention"
            )
        W_pos = weight(model, "W_pos")
        return cls(W_pos=None if W_pos is None else _comparable(W_pos), W_F=_linear_memories(model), **found)  # pyright: ignore

    @property
    def n_layers(self) -> int:
        """Number of attention layers."""
        return self.W_Q.shape[0]

    @property
    def n_heads(self) -> int:
        """Heads per layer."""
        return self.W_Q.shape[1]

    @property
    def n_tokens(self) -> int:
        """Tokens that the model reads."""
        return self.W_E.shape[0]

    @property
    def copies(self) -> bool:
        """Whether tokens written are the tokens read, without which nothing can be copied."""
        return self.W_U.shape[1] == self.n_tokens

    def check_head(self, written: SiteLike) -> Head:
        """(layer, head) of ``L1H0`` or ``(1, 0)``.

        Raises:
            InputError: it is no head, or the model has no such head.
        """
        site = Site.parse(written)
        site.check(self.n_layers, self.n_heads)
        if site.layer is None or site.head is None or site.component != "z" or site.positions is not None:
            raise InputError(f"{site} is no head: memories are those of a whole head, written L1H0 or (1, 0)")
        return site.layer, site.head


def check_size(n_queries: int, n_keys: int) -> None:
    """Refuse a table of scores that would not fit in memory."""
    if n_queries * n_keys > _MOST_SCORES:
        gib = 4 * n_queries * n_keys / 2**30
        raise InputError(
            f"{n_queries:,} × {n_keys:,} scores would take {gib:.0f} GiB: ask circuit_recall for a part, tokens=…"
        )


def caveat_of(model: HookedModel) -> str | None:
    """What the readouts leave out of this model's computation, or None if nothing."""
    normalised = model.cfg.normalization_type is not None
    weights = named_weights(model)
    left_out = ["normalisation's scale"] * normalised
    if normalised and not _is_folded(weights):
        left_out.append("LayerNorm's gain and shift (interp.weight_processing.fold_ln puts them into the matrices)")
    if any(name.rpartition(".")[2].startswith("b_") for name in weights):
        left_out.append("biases")
    if not left_out:
        return None
    return f"the scores are products of bare weight matrices: they leave out {', '.join(left_out)}"


def _is_folded(weights: Mapping[str, Tensor]) -> bool:
    """Whether every LayerNorm has a gain of one and a shift of zero, or none: then no matrix misses them."""
    gains = [gain for name, gain in weights.items() if name.endswith((".ln1.w", ".ln2.w", "ln_final.w"))]
    shifts = [shift for name, shift in weights.items() if name.endswith((".ln1.b", ".ln2.b", "ln_final.b"))]
    return all(bool((gain == 1).all()) for gain in gains) and not any(bool(shift.any()) for shift in shifts)


def triggers_of(task: Task | None, triggers: Sequence[int] | None, n_tokens: int) -> tuple[int, ...] | None:
    """The trigger tokens, from the task or as given; None if every token can be a trigger.

    Raises:
        InputError: both are given, the task has no triggers, or they are none, repeated or outside the vocabulary.
    """
    if task is not None:
        if triggers is not None:
            raise InputError("task and triggers were both given: give one, the task knows its triggers")
        if not hasattr(task, "trigger_tokens"):
            raise InputError(f"the {task.name} task has no trigger_tokens: memories are those of a bigram task")
        if task.d_vocab != n_tokens:
            raise InputError(f"the task has {task.d_vocab} tokens but the model reads {n_tokens}: they do not belong")
        return task.trigger_tokens  # pyright: ignore
    if triggers is None:
        return None
    if len(triggers) == 0:
        raise InputError("triggers is empty: name at least one token, or None for every token")
    if len(set(triggers)) < len(triggers):
        raise InputError(f"triggers = {list(triggers)} names a token twice: name each once")
    for token in triggers:
        if not 0 <= token < n_tokens:
            raise InputError(f"trigger {token} does not exist: the model has tokens 0 to {n_tokens - 1}")
    return tuple(int(token) for token in triggers)


def initial_weights(model: HookedModel, given: HookedModel | None) -> tuple[CircuitWeights | None, str | None]:
    """The weights before training, and a note: why they are unknown, or why they are not certain.

    If not given, they are drawn again from ``model.cfg`` (a HookedTransformer's weights follow from its config), and
    checked on the parameters that the config says are never trained.

    Raises:
        InputError: the given model has other shapes.
    """
    if given is not None:
        weights, before = CircuitWeights.of(model), CircuitWeights.of(given)
        for name in ("W_E", "W_K", "W_O"):
            now, then = getattr(weights, name).shape, getattr(before, name).shape
            if now != then:
                raise InputError(f"init_model's {name} is {list(then)} but the model's is {list(now)}: not its origin")
        return before, None
    if not isinstance(model, HookedTransformer):
        return None, "no cosine with the ideal memories: the weights before training are unknown, give init_model"
    if model.cfg.seed is None:
        return None, "no cosine with the ideal memories: the model was converted or processed, give init_model"
    drawn = HookedTransformer(model.cfg)
    frozen = matching_parameters(model, model.cfg.frozen)
    for name in frozen:
        if not torch.equal(model.get_parameter(name).detach().cpu(), drawn.get_parameter(name).detach()):
            return None, (
                f"no cosine with the ideal memories: {name} is frozen and yet not what cfg.seed = {model.cfg.seed} "
                "draws, so the weights before training are unknown, give init_model"
            )
    note = None
    if not frozen:
        note = (
            f"the weights before training are taken to be what cfg.seed = {model.cfg.seed} draws; nothing in the model "
            "is frozen, so that this cannot be checked"
        )
    return CircuitWeights.of(cast("HookedModel", drawn)), note


def _comparable(weight: Tensor) -> Tensor:
    weight = weight.detach().cpu()
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight


def _linear_memories(model: HookedModel) -> dict[int, Tensor]:
    found = {
        layer: getattr(getattr(block, "mlp", None), "W_F", None)
        for layer, block in enumerate(getattr(model, "blocks", ()))
    }
    return {layer: _comparable(W_F) for layer, W_F in found.items() if W_F is not None}
