"""A circuit as a plain value: some of a model's edges, that print, draw, save and run."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from analyses import circuit_drawing, circuit_file
from analyses.circuit_model import CircuitModel
from analyses.edge_attribution import EdgeReference
from analyses.edges import Anatomy, anatomy_of, edges_in
from analyses.path_runs import OUTPUT
from interp.model_adapter import HookedModel, refuse_other
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Task

_SHOWN = 6  # edges that a printed circuit lists


class Edge(NamedTuple):
    """An edge in the words of ``attribute_edges``' table.

    >>> str(Edge("L0H0", "L1H0", "k")), str(Edge("embed", "output", "in"))
    ('L0H0->L1H0.k', 'embed->output')
    """

    sender: str
    receiver: str
    receiver_input: str

    def __str__(self) -> str:
        ending = "" if self.receiver_input == "in" else f".{self.receiver_input}"
        return f"{self.sender}->{self.receiver}{ending}"


EdgeLike = Edge | tuple[str, str, str] | tuple[str, str] | str
"""An edge, (sender, receiver, input), (sender, "L1H0.k") or "L0H0->L1H0.k"."""


@dataclass(frozen=True, repr=False)
class Circuit:
    """Some of the edges of a model, as a value: two circuits with the same edges of the same anatomy are equal.

    Make one by ``Circuit.of(model, ["embed->L0H0.v", …])``, ``.full``, ``.empty`` or ``.between``, by
    ``discover_circuit``, or from a file. ``|``, ``&``, ``-`` and ``~`` are those of sets, ``<=`` asks whether one lies
    within another.

    Attributes:
        edges: the edges, in the order of ``attribute_edges``' table.
        anatomy: layers, heads, MLPs and embeddings of the models that it can be a circuit of.
        scores: what was measured of edges, where something was; drawn as width, no part of the circuit's identity.

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=4, d_vocab=5, attn_only=True))
    >>> circuit = Circuit.of(model, ["L1H0->output", "L0H0->L1H0.k", "embed->L0H0.v"])
    >>> circuit
    Circuit(3 of 19 edges: embed->L0H0.v, L0H0->L1H0.k, L1H0->output)
    >>> circuit.nodes
    ('embed', 'L0H0', 'L1H0', 'output')
    """

    edges: tuple[Edge, ...]
    anatomy: Anatomy
    scores: Mapping[Edge, float] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Bring the edges into order, each once.

        Raises:
            InputError: an edge that a model of this anatomy does not have.
        """
        place = places(self.anatomy)
        for edge in self.edges:
            if edge not in place:
                raise InputError(_no_such_edge(edge, self.anatomy))
        edges = tuple(sorted(set(self.edges), key=place.__getitem__))
        object.__setattr__(self, "edges", edges)
        kept = {edge: float(self.scores[edge]) for edge in edges if edge in self.scores}
        object.__setattr__(self, "scores", MappingProxyType(kept))

    @classmethod
    def of(cls, model: HookedModel, edges: Iterable[EdgeLike]) -> "Circuit":
        """The circuit of these edges.

        Raises:
            InputError: an edge that is none, or that the model does not have.
        """
        refuse_other(model)
        if isinstance(edges, str):
            raise InputError(f"edges = {edges!r} is one edge: give a list of them")
        return cls(tuple(as_edge(edge) for edge in edges), anatomy_of(model))

    @classmethod
    def full(cls, model: HookedModel) -> "Circuit":
        """All edges: the model itself."""
        refuse_other(model)
        return cls(tuple(places(anatomy_of(model))), anatomy_of(model))

    @classmethod
    def empty(cls, model: HookedModel) -> "Circuit":
        """No edge: the reference's run."""
        return cls.of(model, [])

    @classmethod
    def between(cls, model: HookedModel, nodes: Iterable[str]) -> "Circuit":
        """All edges between these components (``L0H1``, ``L0.mlp``), the embeddings and the output.

        Raises:
            InputError: a component that the model does not have.
        """
        whole = cls.full(model)
        return whole.without(set(whole.components) - set(whole.checked_components(nodes)))

    @classmethod
    def load(cls, path: Path | str) -> "Circuit":
        """Read what ``save`` wrote.

        Raises:
            InputError: no such file, or one that holds anything but a circuit: an unknown key or version, an edge that
                cannot exist.
        """
        anatomy, edges, scores = circuit_file.read(Path(path))
        try:
            known = {Edge(*edge): score for edge, score in scores.items()}
            return cls(tuple(Edge(*edge) for edge in edges), anatomy, known)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def save(self, path: Path | str) -> Path:
        """Write the circuit as JSON, in full or not at all.

        Raises:
            InputError: the file exists.
        """
        circuit_file.write(Path(path), self.anatomy, self.edges, self.scores)
        return Path(path)

    @property
    def components(self) -> tuple[str, ...]:
        """The heads and MLPs that a model of this anatomy has, whether the circuit has them or not."""
        return tuple(one.name for one in edges_in(self.anatomy).senders if one.layer is not None)

    @property
    def nodes(self) -> tuple[str, ...]:
        """What its edges join, in the order of the layers."""
        found = {name for edge in self.edges for name in (edge.sender, edge.receiver)}
        every = [one.name for one in edges_in(self.anatomy).senders] + [OUTPUT]
        return tuple(name for name in every if name in found)

    @property
    def mask(self) -> Bool[Tensor, "edge"]:
        """For each edge that there can be, in the order of ``attribute_edges``' table, whether it is here."""
        return torch.tensor([edge in self._edge_set for edge in places(self.anatomy)])

    def without(self, nodes: Iterable[str]) -> "Circuit":
        """The circuit without the edges from and to these components.

        Raises:
            InputError: a component that the model does not have.
        """
        gone = set(self.checked_components(nodes))
        return self._with(edge for edge in self.edges if edge.sender not in gone and edge.receiver not in gone)

    def connected(self) -> "Circuit":
        """The edges that lie on a path from an embedding to the output, without dead ends."""
        forwards, backwards = {*self.anatomy.embeddings}, {OUTPUT}
        for edge in self.edges:  # in the order of their senders, so that what feeds one comes before it
            if edge.sender in forwards:
                forwards.add(edge.receiver)
        for edge in reversed(self.edges):
            if edge.receiver in backwards:
                backwards.add(edge.sender)
        return self._with(edge for edge in self.edges if edge.sender in forwards and edge.receiver in backwards)

    def as_model(
        self,
        model: HookedModel,
        prompts: Prompts,
        counterfactual: Prompts | Task | None = None,
        *,
        reference: EdgeReference = "counterfactual",
        seed: int = 0,
        batch_size: int = 512,
    ) -> CircuitModel:
        """The model with every edge outside the circuit cut: what analyses take for a model.

        Each input that reads the residual stream gets, of a sender in the circuit, what that adds in this very run
        and, of any other, what it adds in the reference: the run on the prompts' counterfactuals, or its mean over the
        prompts ("mean", at each position), or nothing ("zero"). Biases stay. LayerNorm is computed anew. So the full
        circuit gives the model's outputs and the empty one the reference's.

        With "counterfactual" it runs on these prompts only, since others have no counterfactual.

        Raises:
            InputError: a model that this is no circuit of; and as for ``attribute_edges``.
        """
        self.check_fits(model)
        return CircuitModel.of(
            model, self.mask, prompts, counterfactual, reference=reference, seed=seed, batch_size=batch_size
        )

    def draw(self, *, title: str | None = None) -> str:
        """The circuit as an SVG picture, layers from bottom to top: colour means head, as in every figure.

        Edges are as wide as their scores, where they have some. The picture needs no library and no network, and
        follows the reader's choice of light or dark.
        """
        return circuit_drawing.drawn(self.edges, self.anatomy, self.scores, title=title or self._summary)

    def check_fits(self, model: HookedModel) -> None:
        """Raise InputError if the model has other layers, heads or parts than this circuit's."""
        refuse_other(model)
        if (theirs := anatomy_of(model)) != self.anatomy:
            raise InputError(
                f"the circuit is one of {in_words(self.anatomy)}, the model has {in_words(theirs)}: give the model "
                "that it was found in"
            )

    def checked_components(self, nodes: Iterable[str]) -> tuple[str, ...]:
        """The names, each once; raises InputError if one is no head or MLP of such a model."""
        names = tuple(dict.fromkeys([nodes] if isinstance(nodes, str) else nodes))
        for name in names:
            if name not in self.components:
                raise InputError(
                    f"{name!r} is no head or MLP of {in_words(self.anatomy)}: choose {', '.join(self.components[:8])} …"
                )
        return names

    def __len__(self) -> int:
        return len(self.edges)

    def __iter__(self) -> Iterator[Edge]:
        return iter(self.edges)

    def __contains__(self, edge: object) -> bool:
        try:
            return as_edge(edge) in self._edge_set  # pyright: ignore[reportArgumentType]
        except InputError:
            return False

    @cached_property
    def _edge_set(self) -> frozenset[Edge]:
        return frozenset(self.edges)

    def __or__(self, other: "Circuit") -> "Circuit":
        self._check_same(other)
        return Circuit(self.edges + other.edges, self.anatomy, {**other.scores, **self.scores})

    def __and__(self, other: "Circuit") -> "Circuit":
        self._check_same(other)
        return self._with(edge for edge in self.edges if edge in other._edge_set)

    def __sub__(self, other: "Circuit") -> "Circuit":
        self._check_same(other)
        return self._with(edge for edge in self.edges if edge not in other._edge_set)

    def __invert__(self) -> "Circuit":
        return self._with(edge for edge in places(self.anatomy) if edge not in self._edge_set)

    def __le__(self, other: "Circuit") -> bool:
        self._check_same(other)
        return self._edge_set <= other._edge_set

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.edges[:_SHOWN])) + (", …" if len(self) > _SHOWN else "")
        return f"Circuit({self._summary}{': ' if shown else ''}{shown})"

    def _repr_svg_(self) -> str:
        return self.draw()

    @property
    def _summary(self) -> str:
        return f"{len(self)} of {len(places(self.anatomy))} edges"

    def _with(self, edges: Iterable[Edge]) -> "Circuit":
        return Circuit(tuple(edges), self.anatomy, self.scores)

    def _check_same(self, other: "Circuit") -> None:
        if self.anatomy != other.anatomy:
            raise InputError(
                f"one circuit is of {in_words(self.anatomy)}, the other of {in_words(other.anatomy)}: their edges are "
                "not the same"
            )


@cache
def places(anatomy: Anatomy) -> Mapping[Edge, int]:
    """Every edge there can be, with its place."""
    edges = edges_in(anatomy)
    named = (Edge(edges.senders[s].name, edges.receivers[r].name, edges.receivers[r].input) for s, r in edges.pairs)
    return MappingProxyType({edge: place for place, edge in enumerate(named)})


def as_edge(edge: EdgeLike) -> Edge:
    """An edge from any way to write it.

    Raises:
        InputError: it is none of them.

    >>> as_edge("L0H0->L1H0.k") == as_edge(("L0H0", "L1H0.k")) == as_edge(("L0H0", "L1H0", "k"))
    True
    """
    parts = edge.split("->") if isinstance(edge, str) else edge
    if isinstance(parts, (tuple, list)) and all(isinstance(part, str) for part in parts):
        if len(parts) == 3:
            return Edge(*parts)
        if len(parts) == 2:
            name, _, ending = parts[1].strip().partition(".")
            if ending in ("q", "k", "v"):
                return Edge(parts[0].strip(), name, ending)
            return Edge(parts[0].strip(), parts[1].strip(), "in")
    raise InputError(f"{edge!r} is no edge: write 'L0H0->L1H0.k', 'embed->L0.mlp' or 'L1H0->output'")


def in_words(anatomy: Anatomy) -> str:
    """An anatomy, short.

    >>> in_words(Anatomy(2, 4, (0, 1), ("embed",), False))
    '2 layers × 4 heads, MLPs in layers 0, 1, embed'
    """
    mlps = f"MLPs in layers {', '.join(map(str, anatomy.mlp_layers))}" if anatomy.mlp_layers else "no MLPs"
    if len(anatomy.mlp_layers) == anatomy.n_layers > 2:
        mlps = "MLPs in all layers"
    ending = ", in parallel" if anatomy.parallel else ""
    return f"{anatomy.n_layers} layers × {anatomy.n_heads} heads, {mlps}{ending}, {' and '.join(anatomy.embeddings)}"


def _no_such_edge(edge: Edge, anatomy: Anatomy) -> str:
    edges = edges_in(anatomy)
    senders = {one.name: one for one in edges.senders}
    receivers = {(one.name, one.input): one for one in edges.receivers}
    said = f"the edge {edge} does not exist in {in_words(anatomy)}"
    if edge.sender not in senders:
        return f"{said}: nothing called {edge.sender!r} writes to the stream"
    if edge[1:] not in receivers:
        inputs = [one.label for one in edges.receivers if one.name == edge.receiver]
        return f"{said}: " + (
            f"{edge.receiver} reads by {', '.join(inputs)}" if inputs else f"nothing called {edge.receiver!r} reads it"
        )
    return f"{said}: {edge.sender} writes only after {receivers[edge[1:]].label} has read"
