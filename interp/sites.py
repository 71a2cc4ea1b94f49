"""Where an intervention acts: a small language for heads, MLPs, attention and the residual stream."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tasks.errors import InputError

# component as written → hook point within its layer; a head is an entry of that point's head axis
_IN_LAYERS = {
    "z": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "attn": "hook_attn_out",
    "mlp": "hook_mlp_out",
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "result": "attn.hook_result",
    "scores": "attn.hook_attn_scores",
    "pattern": "attn.hook_pattern",
}
_BEFORE_LAYERS = {"embed": "hook_embed", "pos_embed": "hook_pos_embed"}
COMPONENTS = (*_IN_LAYERS, *_BEFORE_LAYERS)
"""Every component that a site may name, as written."""
OF_HEADS = ("z", "q", "k", "v", "result", "scores", "pattern")
"""The components that each head has its own of."""
_DEST_BY_SRC = ("scores", "pattern")  # [batch, head, dest, src], where all others are [batch, pos, (head,) d]
_SYNONYMS = {"attn_out": "attn", "mlp_out": "mlp", "attn_scores": "scores"}
_WRITTEN = re.compile(r"L(?P<layer>\d+)(?:H(?P<head>\d+))?(?:\.(?P<component>\w+))?")
_HOOK_NAME = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<hook>.+)")
_POSITIONS = re.compile(r"-?\d+(?:,-?\d+)*")


@dataclass(frozen=True)
class Site:
    """One place in a model: a component of a layer, of one head where there are heads, at some positions or all.

    ``embed`` and ``pos_embed`` lie before the layers and have none. The positions of ``scores`` and ``pattern`` are
    those that look (dest). A site of a head reads [batch, pos, d]: of ``result`` d is d_model, of ``scores`` and
    ``pattern`` the positions that are looked at (src).

    >>> Site.parse("L1H3"), str(Site.parse((1, 3)))
    (Site(layer=1, component='z', head=3, positions=None), 'L1H3')
    >>> Site.parse("L0.mlp").hook_name, Site.parse("L1H3.pattern@-1").positions
    ('blocks.0.hook_mlp_out', (-1,))
    """

    layer: int | None
    component: str
    head: int | None = None
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.component not in COMPONENTS:
            raise InputError(f"component {self.component!r} does not exist: choose {', '.join(COMPONENTS)}")
        if (self.layer is None) == (self.component in _IN_LAYERS):
            wanted = "lies before the layers" if self.layer is not None else "is one of each layer, L0.mlp say"
            raise InputError(f"site {self.place} does not name a place: {self.component} {wanted}")
        if (self.head is None) == (self.component in OF_HEADS):
            wanted = "names one head, L0H1 say" if self.head is None else "belongs to the layer, not to a head"
            raise InputError(f"site {self.place} does not name a place: {self.component} {wanted}")
        if self.positions == ():
            raise InputError(f"positions of {self.place} is empty: name at least one, or leave it out for all")

    @classmethod
    def parse(cls, written: "SiteLike", positions: Sequence[int] | None = None) -> "Site":
        """A site from ``L1H3``, ``L1H3.v``, ``L0.mlp``, ``embed``, ``(1, 3)``, a hook name, or (hook name, head).

        Positions follow a written site after an @ (``L1H3@0,-1``), or come as ``positions``.

        Raises:
            InputError: it is none of these, or has positions in both ways.
        """
        site = written if isinstance(written, Site) else cls(*_parsed(written))
        if positions is None:
            return site
        if site.positions is not None:
            raise InputError(f"site {site} has positions already: drop positions={list(positions)}")
        return replace(site, positions=tuple(positions))

    @property
    def hook_name(self) -> str:
        """The hook point it is an entry of."""
        if self.layer is None:
            return _BEFORE_LAYERS[self.component]
        return f"blocks.{self.layer}.{_IN_LAYERS[self.component]}"

    @property
    def place(self) -> str:
        """The site as it is written, without its positions."""
        if self.layer is None:
            return self.component
        if self.head is None:
            return f"L{self.layer}.{self.component}"
        return f"L{self.layer}H{self.head}" + ("" if self.component == "z" else f".{self.component}")

    def __str__(self) -> str:
        return self.place + ("" if self.positions is None else f"@{','.join(map(str, self.positions))}")

    def check(self, n_layers: int, n_heads: int) -> None:
        """Raise InputError if a model of this size has no such layer or head."""
        if self.layer is not None and not 0 <= self.layer < n_layers:
            layers = f"{n_layers} layer{'s' * (n_layers > 1)} ({', '.join(f'L{layer}' for layer in range(n_layers))})"
            raise InputError(f"{self.place} does not exist: the model has {layers}")
        if self.head is not None and not 0 <= self.head < n_heads:
            raise InputError(f"{self.place} does not exist: L{self.layer} has heads H0 to H{n_heads - 1}")

    def index(self, activation: Float[Tensor, "batch *rest"]) -> tuple[Any, ...]:
        """What indexes this site in its hook point's activation.

        Raises:
            InputError: a position lies outside the prompt or is named twice, or the point has fewer heads (keys and
                values that heads share).
        """
        pos_axis, head_axis = (2, 1) if self.component in _DEST_BY_SRC else (1, 2)
        where = slice(None) if self.positions is None else self._checked_positions(activation.shape[pos_axis])
        if self.head is None:
            return (slice(None), where)
        if self.head >= activation.shape[head_axis]:
            raise InputError(
                f"{self.place} does not exist: {self.hook_name} has heads H0 to H{activation.shape[head_axis] - 1}"
            )
        return (slice(None), self.head, where) if pos_axis == 2 else (slice(None), where, self.head)

    def _checked_positions(self, n_pos: int) -> list[int]:
        assert self.positions is not None
        for position in self.positions:
            if not -n_pos <= position < n_pos:
                raise InputError(
                    f"position {position} of {self.place} does not exist: the prompts have {n_pos} positions"
                )
        found = [position % n_pos for position in self.positions]
        if len(set(found)) < len(found):
            raise InputError(f"site {self} names a position twice (the prompts have {n_pos}): name each once")
        return found


SiteLike = Site | str | tuple[int, int] | tuple[str, int]


def _parsed(written: Any) -> tuple[int | None, str, int | None, tuple[int, ...] | None]:
    match written:
        case (int(layer), int(head)):
            return layer, "z", head, None
        case (str(hook_name), int(head)) if place := _from_hook_name(hook_name):
            return *place, head, None
        case str():
            name, at, positions = written.partition("@")
            if not at or _POSITIONS.fullmatch(positions):
                chosen = tuple(map(int, positions.split(","))) if at else None
                if place := _from_hook_name(name):
                    return *place, None, chosen
                if place := _from_short_name(name):
                    return *place, chosen
    hook_names = ", ".join([*_BEFORE_LAYERS.values(), *(f"blocks.L.{hook}" for hook in _IN_LAYERS.values())])
    raise InputError(
        f"site {written!r} is not understood: write L1H3, L1H3.v, L0.mlp, L1.resid_pre, embed, L1H3@0,-1 (positions), "
        f"(1, 3) or a hook name ({hook_names}); components are {', '.join(COMPONENTS)}"
    )


def _from_short_name(name: str) -> tuple[int | None, str, int | None] | None:
    if name in _BEFORE_LAYERS:
        return None, name, None
    found = _WRITTEN.fullmatch(name)
    if found is None:
        return None
    head = None if found["head"] is None else int(found["head"])
    component = found["component"] or ("z" if head is not None else "")
    component = _SYNONYMS.get(component, component)
    return (int(found["layer"]), component, head) if component in _IN_LAYERS else None


def _from_hook_name(name: str) -> tuple[int | None, str] | None:
    for component, hook in _BEFORE_LAYERS.items():
        if name == hook:
            return None, component
    if found := _HOOK_NAME.fullmatch(name):
        for component, hook in _IN_LAYERS.items():
            if hook == found["hook"]:
                return int(found["layer"]), component
    return None
