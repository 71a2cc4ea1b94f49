"""The one file that knows how models differ: HookedTransformer, and TransformerLens' own classes, of version 3 and 4.

Analyses ask a model through these functions and read its ``cfg`` (n_layers, n_heads). A bridge comes from
TransformerLens: ``TransformerBridge.boot_transformers("gpt2")`` for a model of the Hugging Face hub, ``boot_native``
for a small new one, ``build_bridge_from_module`` round a model in memory.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from interp.hook_gate import GuardedHook, HookFunction, matching_points, refuse_unfired
from tasks.errors import InputError

_DISCARDED = "edit is discarded"  # in a bridge's warning
# TransformerLens computes these points only when told to; a hook on one that is off would be skipped.
_SWITCHES = {
    "attn.hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_attn_in": "use_attn_in",
}

Inputs = Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_in"]


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

    def hooks(self, fwd_hooks: Any = ..., bwd_hooks: Any = ...) -> AbstractContextManager[Any]:
        """Hold hooks in place for a with-block."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


def refuse_other(model: object) -> None:
    """Raise InputError if this is no model with hooks: a run, say, whose ``model`` was meant."""
    if not isinstance(model, HookedModel):
        meant = ", did you mean its .model?" if hasattr(model, "model") else ": give a model with hooks"
        raise InputError(f"{type(model).__name__} is no model{meant}")


class FinalNorm(NamedTuple):
    """The LayerNorm before the unembedding; gain and shift are None where they are folded into the unembedding."""

    gain: Float[Tensor, "d_model"] | None
    shift: Float[Tensor, "d_model"] | None
    eps: float


def heads_of(model: HookedModel) -> list[tuple[int, int]]:
    """Layer and head of every head that is there (``absent_heads`` of a HookedTransformer are not)."""
    is_there: Any = getattr(model.cfg, "has_head", None)
    return [
        (layer, head)
        for layer in range(model.cfg.n_layers)
        for head in range(model.cfg.n_heads)
        if is_there is None or is_there(layer, head)
    ]


def outputs(model: HookedModel, inputs: Inputs) -> Float[Tensor, "batch pos *d_out"]:
    """The model's outputs, logits in most cases.

    Raises:
        InputError: dropout is on, so that two passes would differ; tokens or positions that the model does not have.
    """
    _refuse_dropout(model)
    try:
        return model(inputs)
    except IndexError:  # a bridge does not look before it reads its tables
        _refuse_foreign(inputs, model.cfg)
        raise


def outputs_from(
    model: HookedModel, inputs: Inputs, layer: int, resid: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos *d_out"]:
    """The outputs, given the residual stream before a layer; a full pass where the model cannot start there.

    ``inputs`` are those that led to ``resid``, so that both ways give the same.
    """
    _refuse_dropout(model)
    try:
        return model(resid, start_at_layer=layer)
    except NotImplementedError:  # a bridge to an architecture that has no plain stack of blocks; nothing ran yet
        return model(inputs)


@contextmanager
def hooked(
    model: HookedModel,
    fwd_hooks: Sequence[tuple[str, HookFunction]] = (),
    bwd_hooks: Sequence[tuple[str, HookFunction]] = (),
) -> Iterator[None]:
    """Hold hooks in place for a with-block; on every model with the checks of ``HookedTransformer.hooks``.

    Raises:
        InputError: a point that does not exist or is switched off (the message names the setter), an edit that is
            none (see ``GuardedHook``) or that the model would not follow, or, at the end, a hook that never fired.
    """
    points = model.hook_dict

    def guarded(name: str, function: HookFunction, direction: Literal["fwd", "bwd"]) -> GuardedHook:
        point = _checked(model, points, name)
        return GuardedHook(point, function, direction, why_read_only=_why_read_only(points, point))

    forward = [guarded(name, function, "fwd") for name, function in fwd_hooks]
    backward = [guarded(name, function, "bwd") for name, function in bwd_hooks]
    with (
        _discarded_edits_refused(),
        model.hooks([(hook.point, hook) for hook in forward], [(hook.point, hook) for hook in backward]),
    ):
        yield
    refuse_unfired(forward + backward)


def activations(
    model: HookedModel, inputs: Inputs, names: Sequence[str]
) -> tuple[Float[Tensor, "batch pos *d_out"], dict[str, Tensor]]:
    """The outputs, and copies of the activations at the named hook points, from one clean pass without gradients.

    Raises:
        InputError: as for ``hooked``.
    """
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> HookFunction:
        def observe(activation: Tensor, hook: HookPoint) -> None:  # noqa: ARG001 — TransformerLens' call
            kept[name] = activation.detach().clone()

        return observe

    with torch.no_grad(), hooked(model, [(name, keep(name)) for name in dict.fromkeys(names)]):
        return outputs(model, inputs), kept


class _Kept:
    """Activations kept without a copy, and whether anyone has written into one since (another hook, in place)."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}

    def keep(self, name: str, activation: Tensor) -> None:
        """Keep what a hook is shown; a copy in inference mode, where PyTorch counts no writes."""
        self.tensors[name] = activation.clone() if activation.is_inference() else activation.detach()
        self._versions[name] = 0 if activation.is_inference() else activation._version

    def are_as_seen(self) -> bool:
        """Whether every tensor still holds what was kept."""
        return all(
            tensor.is_inference() or tensor._version == self._versions[name] for name, tensor in self.tensors.items()
        )


def activations_alone(model: HookedModel, inputs: Inputs, names: Sequence[str]) -> dict[str, Tensor]:
    """The activations at the named hook points, from a clean pass that ends once all have been seen.

    Raises:
        InputError: as for ``hooked``.
    """
    wanted = set(names)
    kept = _Kept()

    def keep(name: str) -> HookFunction:
        def observe(activation: Tensor, hook: HookPoint) -> None:  # noqa: ARG001 — TransformerLens' call
            kept.keep(name, activation)
            if len(kept.tensors) == len(wanted):
                raise _AllSeen

        return observe

    with (
        suppress(_AllSeen),
        torch.no_grad(),
        hooked(model, [(name, keep(name)) for name in wanted]),
    ):
        outputs(model, inputs)
    return kept.tensors if kept.are_as_seen() else activations(model, inputs, names)[1]


class _AllSeen(Exception):  # noqa: N818 — it ends a pass and reports nothing
    """Raised by the last observer of a pass whose outputs nobody needs."""


@contextmanager
def watching(model: HookedModel, names: Iterable[str]) -> Iterator[None]:
    """Watch hook points for a with-block and do nothing: attention computes what is watched, on the same path.

    Raises:
        InputError: as for ``hooked``.
    """
    with hooked(model, [(name, _observe) for name in dict.fromkeys(names)]):
        yield


def _observe(activation: Tensor, hook: HookPoint) -> None:
    pass


def reached_points(model: HookedModel) -> frozenset[str]:
    """The hook points that a pass can reach; TransformerLens 3 lists those of MLPs even where there is none."""
    without_mlp = getattr(model.cfg, "attn_only", False)
    return frozenset(name for name in model.hook_dict if not (without_mlp and name.endswith(("mlp_out", "mlp_in"))))


def weight(model: HookedModel, name: str) -> Tensor | None:
    """A weight by TransformerLens' name (``W_E``, ``W_O`` [layer, head, d_head, d_model], ``b_O`` …), or None."""
    try:
        return getattr(model, name, None)
    except NotImplementedError:  # a bridge to an architecture that has no such matrix
        return None


def needed_weight(model: HookedModel, name: str) -> Tensor:
    """A weight that the caller cannot do without.

    Raises:
        InputError: the model has none of that name.
    """
    found = weight(model, name)
    if found is None:
        raise InputError(f"the model has no {name}: this reads a transformer with attention over embedded tokens")
    return found


def named_weights(model: HookedModel) -> dict[str, Tensor]:
    """All weights by TransformerLens' names; a bridge gives zeros for biases that it has not."""
    source: Any = model
    return dict(source.tl_parameters() if hasattr(source, "tl_parameters") else source.named_parameters())


def final_norm(model: HookedModel) -> FinalNorm | None:
    """The LayerNorm before the unembedding, or None where there is none.

    Raises:
        InputError: the normalisation is no LayerNorm.
    """
    kind = model.cfg.normalization_type
    if kind is None:
        return None
    if kind not in ("LN", "LNPre"):
        raise InputError(f"normalization_type = {kind!r} is no LayerNorm: this reads through none or a LayerNorm")
    norm = model.ln_final  # pyright: ignore[reportAttributeAccessIssue]
    return FinalNorm(getattr(norm, "w", None), getattr(norm, "b", None), model.cfg.eps)


def _checked(model: HookedModel, points: Mapping[str, HookPoint], name: str) -> str:
    (point,) = matching_points(points, name)
    for ending, switch in _SWITCHES.items():
        if point.endswith(ending) and not getattr(model.cfg, switch, True):
            raise InputError(
                f"{point} is switched off in this {type(model).__name__}: call model.set_{switch}(True) first"
            )
    return point


def _why_read_only(points: Mapping[str, HookPoint], name: str) -> str | None:
    """A bridge's resid_mid is what the next LayerNorm reads: an edit there would not reach the residual stream."""
    if not name.endswith("hook_resid_mid"):
        return None
    for other, point in points.items():
        if point is points[name] and other != name:
            return f"it is {other}, and an edit would miss the residual stream; edit hook_attn_out or hook_resid_post"
    return None


@contextmanager
def _discarded_edits_refused() -> Iterator[None]:
    """A bridge warns where the wrapped model had used an activation before a hook could edit it: scores, say."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{_DISCARDED}", category=UserWarning)
        try:
            yield
        except UserWarning as warning:
            if _DISCARDED not in str(warning):
                raise
            place = str(warning).removeprefix("A hook on ").partition(" ")[0]
            raise InputError(
                f"{place} can only be read in this model, which has used it by then: edit q, k, v or z"
            ) from None


def _refuse_foreign(inputs: Inputs, cfg: Any) -> None:
    n_pos, low, high = inputs.shape[1], int(inputs.min()), int(inputs.max())
    if low < 0 or high >= cfg.d_vocab:
        raise InputError(f"token {low if low < 0 else high} does not exist: d_vocab = {cfg.d_vocab}")
    if n_pos > cfg.n_ctx:
        raise InputError(f"the prompts have {n_pos} positions but the model has n_ctx = {cfg.n_ctx}")


def _refuse_dropout(model: HookedModel) -> None:
    inside: Any = getattr(model, "original_model", model)
    if isinstance(inside, nn.Module) and any(
        isinstance(module, nn.Dropout) and module.training and module.p > 0 for module in inside.modules()
    ):
        raise InputError("the model is in training mode and drops activations at random: call model.eval() first")
