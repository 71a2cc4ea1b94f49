"""The forward pass once more, in numpy and without hooks, one sender and one receiver at a time.

It shares no code with the model that it follows, so it is what hooks, ablations and patches are checked against.
"""

from collections.abc import Iterator, Mapping
from itertools import chain, combinations, permutations
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from interp.hooked_transformer import HookedTransformer
from tasks.errors import InputError
from tasks.prompts import Prompts

Sent = dict[str, Float[ndarray, "batch pos d_model"]]
"""What each sender (embed, pos_embed, L0H0, L0.mlp) adds to the residual stream."""


class PlainTransformer:
    """A causal transformer without LayerNorm, as sums over senders.

    >>> from interp.constructions.copying import copy_circuit
    >>> known = copy_circuit()
    >>> logits, _ = PlainTransformer(known.model)(known.prompts.inputs.numpy())
    >>> np.allclose(logits, known.model(known.prompts.inputs).detach().numpy())
    True
    """

    def __init__(self, model: HookedTransformer):
        cfg = model.cfg
        if cfg.normalization_type is not None or cfg.attn_fn != "softmax" or cfg.attention_dir != "causal":
            raise InputError("the plain forward pass follows causal softmax attention without LayerNorm: this has more")
        if cfg.parallel_attn_mlp or (cfg.mlp_type == "mlp" and cfg.act_fn != "relu" and not cfg.attn_only):
            raise InputError("the plain forward pass follows attention, then a linear or ReLU MLP: this has another")
        self.cfg = cfg
        self.weights = {name: weight.detach().double().numpy() for name, weight in model.named_parameters()}

    def __call__(
        self,
        tokens: Int[ndarray, "batch pos"],
        *,
        written: Mapping[str, ndarray | float] | None = None,
        edges: Mapping[str, ndarray | float] | None = None,
    ) -> tuple[Float[ndarray, "batch pos vocab"], Sent]:
        """Logits, and what every sender wrote.

        ``written`` replaces what a sender writes for all; ``edges`` what one receiver gets (``L0H0->L1H0.k``).
        """
        W, sent = self.weights, Sent()

        def write(sender: str, output: ndarray) -> None:
            sent[sender] = (0 * output + written[sender]) if written and sender in written else output

        def read(receiver: str) -> ndarray:
            return sum(
                (edges or {}).get(f"{sender}->{receiver}", 0) + 0 * output
                if f"{sender}->{receiver}" in (edges or {})
                else output
                for sender, output in sent.items()
            )  # pyright: ignore[reportReturnType]

        write("embed", W["embed.W_E"][tokens])
        if "pos_embed.W_pos" in W:
            write("pos_embed", np.repeat(W["pos_embed.W_pos"][None, : tokens.shape[1]], len(tokens), axis=0))
        for layer in range(self.cfg.n_layers):
            results = {
                f"L{layer}H{head}": self._head(layer, head, [read(f"L{layer}H{head}.{each}") for each in "qkv"])
                for head in range(self.cfg.n_heads)
            }
            for name, result in results.items():
                write(name, result)
            if self.cfg.has_mlp(layer):
                write(f"L{layer}.mlp", self._mlp(layer, read(f"L{layer}.mlp")))
        return read("output") @ W["unembed.W_U"] + W.get("unembed.b_U", 0), sent

    def _head(self, layer: int, head: int, inputs: list[ndarray]) -> Float[ndarray, "batch pos d_model"]:
        at = f"blocks.{layer}.attn"
        q, k, v = (
            one @ self.weights[f"{at}.W_{name}"][head] + self._bias(f"{at}.b_{name}", head)
            for name, one in zip("QKV", inputs, strict=True)
        )
        scores = np.einsum("bqd,bkd->bqk", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(scores.shape[1], dtype=bool), scores, -np.inf)
        pattern = np.exp(scores - scores.max(axis=-1, keepdims=True))
        pattern = pattern / pattern.sum(axis=-1, keepdims=True)
        return np.einsum("bqk,bkd,dm->bqm", pattern, v, self.weights[f"{at}.W_O"][head])

    def _mlp(self, layer: int, x: ndarray) -> Float[ndarray, "batch pos d_model"]:
        W, at = self.weights, f"blocks.{layer}.mlp"
        if f"{at}.W_F" in W:
            return x @ W[f"{at}.W_F"]
        pre = x @ W[f"{at}.W_in"] + W.get(f"{at}.b_in", 0)
        return np.maximum(pre, 0) @ W[f"{at}.W_out"] + W.get(f"{at}.b_out", 0)

    def _bias(self, name: str, head: int) -> ndarray | float:
        return self.weights[name][head] if name in self.weights else 0.0

    def edges(self) -> Iterator[str]:
        """Every edge by its name, senders varying slowest."""
        heads = [[f"L{layer}H{head}" for head in range(self.cfg.n_heads)] for layer in range(self.cfg.n_layers)]
        mlps = [[f"L{layer}.mlp"] if self.cfg.has_mlp(layer) else [] for layer in range(self.cfg.n_layers)]
        receivers = [[f"{head}.{each}" for head in of_layer for each in "qkv"] for of_layer in heads]
        steps = list(chain.from_iterable(zip(receivers, mlps, strict=True)))  # in the order in which they read
        starts = ["embed", *(["pos_embed"] if "pos_embed.W_pos" in self.weights else [])]
        senders = [(0, one) for one in starts]
        for layer, (of_layer, mlp) in enumerate(zip(heads, mlps, strict=True)):
            senders += [(2 * layer + 1, one) for one in of_layer] + [(2 * layer + 2, one) for one in mlp]
        for after, sender in senders:
            for step in steps[after:]:
                yield from (f"{sender}->{receiver}" for receiver in step)
            yield f"{sender}->output"


def logit_difference(logits: Float[ndarray, "batch pos vocab"], prompts: Prompts) -> float:
    """The mean over scored positions of the answer's logit minus the wrong answer's."""
    assert prompts.wrong is not None
    rows, columns = prompts.scored.numpy().nonzero()
    right, wrong = (answer.numpy()[rows, columns] for answer in (prompts.targets, prompts.wrong))
    return float((logits[rows, columns, right] - logits[rows, columns, wrong]).mean())


def measured_effects(model: HookedTransformer, prompts: Prompts, reference: Prompts) -> dict[str, dict[str, float]]:
    """Every effect of ``KnownCircuit.effects``, measured with plain forward passes; heads, MLPs and edges.

    "gradient" by central differences, "integrated" left out: its integral has no plain counterpart.

    Raises:
        InputError: a model that the plain forward pass does not follow, or prompts without a counterfactual.
    """
    if prompts.counterfactual is None or prompts.wrong is None:
        raise InputError("these prompts carry no counterfactual or no wrong answers: effects are measured with both")
    plain = PlainTransformer(model)
    inputs, swapped, others = (one.inputs.numpy() for one in (prompts, prompts.counterfactual, reference))
    logits, here = plain(inputs)
    other_logits, there = plain(swapped)
    _, neutral = plain(others)
    clean, other = (logit_difference(one, prompts) for one in (logits, other_logits))

    def after(tokens: ndarray, **edited: Mapping[str, ndarray | float]) -> float:
        return logit_difference(plain(tokens, **edited)[0], prompts)

    parts = [name for name in here if name not in ("embed", "pos_embed")]
    heads = [name for name in parts if not name.endswith("mlp")]
    found: dict[str, dict[str, float]] = {}
    found["zero"] = {one: after(inputs, written={one: 0.0}) - clean for one in parts}
    found["mean"] = {one: after(inputs, written={one: here[one].mean(axis=0)}) - clean for one in parts}
    found["resample"] = {one: after(inputs, written={one: neutral[one]}) - clean for one in parts}
    found["counterfactual"] = {one: after(inputs, written={one: there[one]}) - clean for one in parts}
    found["restored"] = {one: after(swapped, written={one: here[one]}) - other for one in parts}
    found["direct"] = {one: clean - after(inputs, edges={f"{one}->output": 0.0}) for one in here}
    step = 1e-5
    found["gradient"] = {
        one: sum(sign * after(inputs, written={one: (1 - sign * step) * here[one]}) for sign in (1, -1)) / (2 * step)
        for one in parts
    }
    found["pairs"] = {
        f"{a}+{b}": after(inputs, written={a: 0.0, b: 0.0}) - clean - found["zero"][a] - found["zero"][b]
        for a, b in combinations(heads, 2)
    }
    found["shapley"] = _shapley({
        chosen: after(inputs, written=dict.fromkeys(chosen, 0.0)) - clean
        for size in range(len(heads) + 1)
        for chosen in map(frozenset, combinations(heads, size))
    })  # fmt: skip
    edges = list(plain.edges())
    found["edges, zero"] = {edge: after(inputs, edges={edge: 0.0}) - clean for edge in edges}
    found["edges, counterfactual"] = {
        edge: after(inputs, edges={edge: there[edge.split("->")[0]]}) - clean for edge in edges
    }
    return found


def edge_slopes(
    model: HookedTransformer, prompts: Prompts, reference: Literal["zero", "counterfactual"]
) -> dict[str, float]:
    """What patching each edge does to first order, by central differences: what edge attribution patching defines.

    Raises:
        InputError: a model that the plain forward pass does not follow.
    """
    plain, inputs, step = PlainTransformer(model), prompts.inputs.numpy(), 1e-5
    _, here = plain(inputs)
    there = {name: 0 * output for name, output in here.items()}
    if reference == "counterfactual" and prompts.counterfactual is not None:
        _, there = plain(prompts.counterfactual.inputs.numpy())

    def towards(edge: str, share: float) -> float:
        sender = edge.split("->")[0]
        moved = here[sender] + share * (there[sender] - here[sender])
        return logit_difference(plain(inputs, edges={edge: moved})[0], prompts)

    return {edge: (towards(edge, step) - towards(edge, -step)) / (2 * step) for edge in plain.edges()}


def _shapley(value: Mapping[frozenset[str], float]) -> dict[str, float]:
    """The mean over all orders of arrival, order by order (no formula with factorials)."""
    players = sorted(max(value, key=len))
    shares = dict.fromkeys(players, 0.0)
    orders = list(permutations(players))
    for order in orders:
        for place, player in enumerate(order):
            before = frozenset(order[:place])
            shares[player] += (value[before | {player}] - value[before]) / len(orders)
    return shares
