"""The edges of a transformer: which outputs are added to the residual stream before which inputs are read from it."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

from analyses.path_runs import OUTPUT
from interp.model_adapter import HookedModel, reached_points

INPUTS_OF_HEADS = ("q", "k", "v")


@dataclass(frozen=True)
class Sender:
    """What writes to the residual stream: ``embed``, ``pos_embed``, a head, or a feed-forward part."""

    name: str
    point: str
    """Where its output is seen: a head's z, or what is added itself."""
    layer: int | None
    head: int | None
    writes: int
    """When: 2 l is before layer l reads, 2 l + 1 between its attention and its MLP."""


@dataclass(frozen=True)
class Receiver:
    """What reads from the residual stream: the q, k or v of a head, a feed-forward part, or the output."""

    name: str
    input: Literal["q", "k", "v", "in"]
    point: str
    """Where that is seen before any LayerNorm, by itself: a point [batch, pos, (head,) d_model]."""
    layer: int | None
    head: int | None
    reads: int

    @property
    def label(self) -> str:
        """The name with the input, where there are several: ``L1H0.k``."""
        return self.name if self.input == "in" else f"{self.name}.{self.input}"


@dataclass(frozen=True)
class Edges:
    """All senders and receivers in the order of the layers, and the pairs that an edge joins (by place)."""

    senders: tuple[Sender, ...]
    receivers: tuple[Receiver, ...]
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Anatomy:
    """What decides which edges a model has."""

    n_layers: int
    n_heads: int
    mlp_layers: tuple[int, ...]
    """The layers with a feed-forward part."""
    embeddings: tuple[str, ...]
    """``embed`` and, where positions are added to the stream, ``pos_embed``."""
    parallel: bool
    """Whether attention and feed-forward part read the same."""


def anatomy_of(model: HookedModel) -> Anatomy:
    """What decides which edges a model has."""
    reached, n_layers = reached_points(model), model.cfg.n_layers
    return Anatomy(
        n_layers=n_layers,
        n_heads=model.cfg.n_heads,
        mlp_layers=tuple(layer for layer in range(n_layers) if f"blocks.{layer}.hook_mlp_out" in reached),
        embeddings=tuple(name for name in ("embed", "pos_embed") if f"hook_{name}" in reached),
        parallel=bool(getattr(model.cfg, "parallel_attn_mlp", False)),
    )


def edges_of(model: HookedModel) -> Edges:
    """Every edge of a model, senders varying slowest.

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=4, n_ctx=3, d_vocab=5, attn_only=True))
    >>> edges = edges_of(model)
    >>> [f"{edges.senders[s].name}->{edges.receivers[r].label}" for s, r in edges.pairs if edges.senders[s].layer == 0]
    ['L0H0->output']
    """
    return edges_in(anatomy_of(model))


@cache
def edges_in(anatomy: Anatomy) -> Edges:
    """Every edge that a model of this anatomy has, senders varying slowest."""
    senders = [Sender(name, f"hook_{name}", None, None, 0) for name in anatomy.embeddings]
    receivers: list[Receiver] = []
    for layer in range(anatomy.n_layers):
        at = f"blocks.{layer}"
        for head in range(anatomy.n_heads):
            name = f"L{layer}H{head}"
            writes = 2 * layer + (2 if anatomy.parallel else 1)
            senders.append(Sender(name, f"{at}.attn.hook_z", layer, head, writes))
            receivers += [
                Receiver(name, each, f"{at}.hook_{each}_input", layer, head, 2 * layer) for each in INPUTS_OF_HEADS
            ]
        if layer in anatomy.mlp_layers:
            name = f"L{layer}.mlp"
            senders.append(Sender(name, f"{at}.hook_mlp_out", layer, None, 2 * layer + 2))
            reads = 2 * layer + (0 if anatomy.parallel else 1)
            receivers.append(Receiver(name, "in", f"{at}.hook_mlp_in", layer, None, reads))
    last = 2 * anatomy.n_layers
    receivers.append(Receiver(OUTPUT, "in", f"blocks.{anatomy.n_layers - 1}.hook_resid_post", None, None, last))
    pairs = [
        (s, r)
        for s, sender in enumerate(senders)
        for r, receiver in enumerate(receivers)
        if sender.writes <= receiver.reads
    ]
    return Edges(tuple(senders), tuple(receivers), tuple(pairs))
