"""Where an intervention acts: a small language for heads, MLPs and the residual stream."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tasks.errors import InputError

# component as written → hook point within the model; a head is an entry of the first one's head axis
_HOOKS = {
    "z": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "attn": "hook_attn_out",
    "mlp": "hook_mlp_out",
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
}
_SYNONYMS = {"attn_out": "attn", "mlp_out": "mlp"}
_WITH_HEADS = ("z", "q", "k", "v")
_WRITTEN = re.compile(r"L(?P<layer>\d+)(?:H(?P<head>\d+))?(?:\.(?P<component>\w+))?")
_HOOK_NAME = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<hook>.+)")


@dataclass(frozen=True)
class Site:
    """One place in a model: a component of a layer, of one head where there are heads, at some positions or all.

    >>> Site.parse("L1H3"), str(Site.parse((1, 3)))
    (Site(layer=1, component='z', head=3, positions=None), 'L1H3')
    >>> Site.parse("L0.mlp").hook_name
    'blocks.0.hook_mlp_out'
    """

    layer: int
    component: str
    head: int | None = None
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.component not in _HOOKS:
            raise InputError(f"component {self.component!r} does not exist: choose {', '.join(_HOOKS)}")
        if (self.head is None) == (self.component in _WITH_HEADS):
            wanted = "names one head, L0H1 say" if self.head is None else "belongs to the layer, not to a head"
            raise InputError(f"site {self} does not name a place: {self.component} {wanted}")
        if self.positions == ():
            raise InputError(f"positions of {self} is empty: name at least one, or leave it out for all")

    @classmethod
    def parse(cls, written: "SiteLike", positions: Sequence[int] | None = None) -> "Site":
        """A site from ``L1H3``, ``L1H3.v``, ``L0.mlp``, ``(1, 3)``, a hook name, or (hook name, head).

        Raises:
            InputError: it is none of these.
        """
        chosen = None if positions is None else tuple(positions)
        if isinstance(written, Site):
            return written if chosen is None else replace(written, positions=chosen)
        return cls(*_parsed(written), chosen)

    @property
    def hook_name(self) -> str:
        """The hook point it is an entry of."""
        return f"blocks.{self.layer}.{_HOOKS[self.component]}"

    def __str__(self) -> str:
        if self.head is None:
            return f"L{self.layer}.{self.component}"
        return f"L{self.layer}H{self.head}" + ("" if self.component == "z" else f".{self.component}")

    def check(self, n_layers: int, n_heads: int) -> None:
        """Raise InputError if a model of this size has no such layer or head."""
        if not 0 <= self.layer < n_layers:
            layers = f"{n_layers} layer{'s' * (n_layers > 1)} ({', '.join(f'L{layer}' for layer in range(n_layers))})"
            raise InputError(f"{self} does not exist: the model has {layers}")
        if self.head is not None and not 0 <= self.head < n_heads:
            raise InputError(f"{self} does not exist: L{self.layer} has heads H0 to H{n_heads - 1}")

    def index(self, activation: Float[Tensor, "batch pos *rest"]) -> tuple[Any, ...]:
        """What indexes this site in its hook point's activation.

        Raises:
            InputError: a position lies outside the prompt.
        """
        n_pos = activation.shape[1]
        for position in self.positions or ():
            if not -n_pos <= position < n_pos:
                raise InputError(f"position {position} of {self} does not exist: the prompts have {n_pos} positions")
        where = slice(None) if self.positions is None else list(self.positions)
        return (slice(None), where) if self.head is None else (slice(None), where, self.head)


SiteLike = Site | str | tuple[int, int] | tuple[str, int]


def _parsed(written: Any) -> tuple[int, str, int | None]:
    match written:
        case (int(layer), int(head)):
            return layer, "z", head
        case (str(hook_name), int(head)):
            layer, component, _ = _from_hook_name(hook_name, written)
            return layer, component, head
        case str() if written.startswith("blocks."):
            return _from_hook_name(written, written)
        case str() if found := _WRITTEN.fullmatch(written):
            head = None if found["head"] is None else int(found["head"])
            component = found["component"] or ("z" if head is not None else None)
            component = _SYNONYMS.get(component or "", component)
            if component in _HOOKS:
                return int(found["layer"]), component, head
    raise InputError(
        f"site {written!r} is not understood: write L1H3, L1H3.v, L0.mlp, L1.resid_pre, (1, 3) or a hook name; "
        f"components are {', '.join(_HOOKS)}"
    )


def _from_hook_name(hook_name: str, written: Any) -> tuple[int, str, int | None]:
    if found := _HOOK_NAME.fullmatch(hook_name):
        for component, hook in _HOOKS.items():
            if hook == found["hook"]:
                return int(found["layer"]), component, None
    raise InputError(f"site {written!r} is not understood: blocks.L.{', blocks.L.'.join(_HOOKS.values())} are sites")
