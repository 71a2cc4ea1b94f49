"""A network that is linear in every activation, so that first-order methods have nothing to get wrong."""

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from interp.constructions.known_circuit import KnownCircuit, blank_model, paired_prompts

_N_POS, _N_ANSWERS, _D = 3, 8, 6
_N_TOKENS = _N_ANSWERS + 1
_SEED = 337
"""Draws matrices with which every part adds 0.8 logits or more, on nearly every prompt."""
_PARTS = ("token", "middle", "answer", "unread")
# what each reads and writes
_WIRES = {
    "L0H0": ("token", "middle"),
    "L0H1": ("token", "answer"),
    "L0.mlp": ("middle", "answer"),
    "L1H0": ("middle", "answer"),
    "L1H1": ("unread", "answer"),
}
_Matrix = Float[ndarray, "d_in d_out"]


def linear_network(*, seed: int = _SEED) -> KnownCircuit:
    """Two layers of two heads with even attention (no queries, no keys), and a linear MLP after the first.

    The residual stream has four parts of 6 numbers: token, middle, answer, and one that nothing writes to. L0H0 takes
    token to middle, L0H1 token to answer, the MLP and L1H0 middle to answer, L1H1 what nobody wrote. The matrices are
    drawn with ``seed``. With A the even causal pattern and h, m what heads and MLP write, a change δ of the
    residual stream behind layer 0's attention moves the logits by G δ = (δ' + A δ' Σ_h OV_1h) W_U with δ' = δ + δ W_F,
    and each effect is a sum over the paths that it opens or shuts:

    - a head of layer 0: G (−h); the MLP: (−m − A m Σ OV_1h) W_U; a head of layer 1: −h W_U;
    - an edge: the same with what its receiver makes of the sender's change;
    - the Shapley value: a path through both layers' heads counts half for each of its two, all other paths whole.

    So to zero a head, attribution patching and integrated gradients agree, and edge attribution is exact.

    >>> known = linear_network()
    >>> known.effects["zero"] == known.effects["gradient"], known.effect("zero", "L1H1")
    (True, 0.0)
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(_D, _D, generator=generator, dtype=torch.float64) for name in _WIRES}
    ends = [torch.randn(n, _D, generator=generator, dtype=torch.float64) for n in (_N_TOKENS, _N_TOKENS)]
    model = _model(drawn, *ends)
    rows = [[(answer + 3) % _N_ANSWERS, answer, (answer + 5) % _N_ANSWERS] for answer in range(_N_ANSWERS)]
    others = [[(token + _N_ANSWERS // 2) % _N_ANSWERS for token in row] for row in rows]
    prompts, reference = paired_prompts(rows, others, 1, [_N_ANSWERS] * _N_POS)
    linear = _Linear({name: weight.numpy() for name, weight in drawn.items()}, *(end.numpy() for end in ends))
    here, there, neutral = (linear.written(one.inputs.numpy()) for one in (prompts, prompts.counterfactual, reference))
    targets, wrong = (one[:, -1].numpy() for one in (prompts.targets, prompts.wrong))

    def difference(logits: Float[ndarray, "batch pos vocab"]) -> float:
        every = np.arange(len(logits))
        return float((logits[every, -1, targets] - logits[every, -1, wrong]).mean())

    def effects(changes: dict[str, ndarray]) -> dict[str, float]:
        return {name: difference(linear.through(name, changes[name])) for name in _WIRES}

    zero = {name: -output for name, output in here.items()}
    gone = effects(zero)
    both = {name: difference(linear.through_second(zero[name])) for name in ("L0H0", "L0H1")}  # L1H0 reads them
    shapley = {name: gone[name] - shared / 2 for name, shared in both.items()}
    shapley |= {"L1H0": gone["L1H0"] - sum(both.values()) / 2}
    swap = {name: there[name] - output for name, output in here.items()}
    swapped = effects(swap)
    edges = {
        estimand: {edge: difference(linear.along(edge, change[edge.split("->")[0]])) for edge in linear.edges()}
        for estimand, change in (("edges, zero", zero), ("edges, counterfactual", swap))
    }
    heads = [name for name in _WIRES if name != "L0.mlp"]
    return KnownCircuit(
        name="linear network",
        about="even attention and linear parts only: first-order methods are exact here",
        model=model,
        prompts=prompts,
        reference=reference,
        true_edges=frozenset(linear.edges()),
        effects={
            **dict.fromkeys(("zero", "gradient"), gone),
            "integrated": {name: gone[name] for name in heads},
            "mean": effects({name: output.mean(axis=0) - output for name, output in here.items()}),
            "resample": effects({name: neutral[name] - output for name, output in here.items()}),
            "counterfactual": swapped,
            "restored": {name: -effect for name, effect in swapped.items()},
            "direct": {name: difference(linear.read_out(output)) for name, output in here.items()},
            "shapley": shapley,
            "pairs": {f"{name}+L1H0": -shared for name, shared in both.items()},
            **edges,
        },
        baseline=difference(linear.read_out(np.sum(list(here.values()), axis=0))),
    )


class _Linear:
    """The network as matrices between parts of the residual stream, written [batch, pos, part, d]."""

    def __init__(self, matrices: dict[str, _Matrix], embedding: ndarray, unembedding: ndarray):
        self.matrices, self.embedding, self.unembedding = matrices, embedding, unembedding
        self.pattern = np.tri(_N_POS) / np.arange(1, _N_POS + 1)[:, None]

    def written(self, tokens: ndarray) -> dict[str, ndarray]:
        """What each component writes."""
        embedded = np.zeros((*tokens.shape, len(_PARTS), _D))
        embedded[:, :, 0] = self.embedding[tokens]
        found = {"embed": embedded, "L0H0": self._apply("L0H0", embedded), "L0H1": self._apply("L0H1", embedded)}
        found["L0.mlp"] = self._apply("L0.mlp", found["L0H0"] + found["L0H1"] + embedded)
        before_second = np.sum(list(found.values()), axis=0)
        return found | {name: self._apply(name, before_second) for name in ("L1H0", "L1H1")}

    def through(self, name: str, change: ndarray) -> ndarray:
        """What a change of a component's output does to the logits by every path."""
        if name.startswith("L1"):
            return self.read_out(change)
        behind = change if name == "L0.mlp" else change + self._apply("L0.mlp", change)
        return self.read_out(behind) + self._second(behind)

    def through_second(self, change: ndarray) -> ndarray:
        """What a change of a layer 0 head's output does by way of the second layer's heads alone."""
        return self._second(change + self._apply("L0.mlp", change))

    def along(self, edge: str, change: ndarray) -> ndarray:
        """What a change of a sender's output does to the logits if one receiver alone gets it."""
        receiver = edge.split("->")[1].removesuffix(".v")
        return self.read_out(change) if receiver == "output" else self.through(receiver, self._apply(receiver, change))

    def edges(self) -> list[str]:
        """Every pair where a part that the one writes is read by the other, in the order of the layers."""
        order = ["embed", *_WIRES]
        writes = {"embed": "token"} | {name: writes for name, (_, writes) in _WIRES.items()}
        step = {"embed": 0, "L0H0": 1, "L0H1": 1, "L0.mlp": 2, "L1H0": 3, "L1H1": 3}
        found = [
            f"{sender}->{receiver}{'' if receiver == 'L0.mlp' else '.v'}"
            for sender in order
            for receiver, (reads, _) in _WIRES.items()
            if step[sender] < step[receiver] and writes[sender] == reads
        ]
        return found + [f"{one}->output" for one in order if writes[one] == "answer" and one != "L1H1"]

    def read_out(self, resid: ndarray) -> ndarray:
        """Logits of a residual stream."""
        return resid[:, :, _PARTS.index("answer")] @ self.unembedding.T

    def _second(self, resid: ndarray) -> ndarray:
        return self.read_out(self._apply("L1H0", resid) + self._apply("L1H1", resid))

    def _apply(self, name: str, resid: ndarray) -> ndarray:
        reads, writes = (_PARTS.index(part) for part in _WIRES[name])
        found = np.zeros_like(resid)
        found[:, :, writes] = resid[:, :, reads] @ self.matrices[name]
        return found if name == "L0.mlp" else np.einsum("ts,bspd->btpd", self.pattern, found)


def _model(drawn: dict[str, torch.Tensor], embedding: torch.Tensor, unembedding: torch.Tensor):
    part = {name: slice(k * _D, (k + 1) * _D) for k, name in enumerate(_PARTS)}
    model = blank_model(
        n_layers=2, n_heads=2, d_model=len(_PARTS) * _D, d_head=_D, n_ctx=_N_POS, d_vocab=_N_TOKENS, mlp_type="linear",
        mlp_layers=(0,), use_biases=False, positional_embedding_type="none",
    )  # fmt: skip
    with torch.no_grad():
        model.W_E[:, part["token"]] = embedding
        model.W_U[part["answer"]] = unembedding.T
        for name, (reads, writes) in _WIRES.items():
            if name == "L0.mlp":
                model.get_parameter("blocks.0.mlp.W_F")[part[reads], part[writes]] = drawn[name]
                continue
            attn, head = model.blocks[int(name[1])].attn, int(name[3])
            attn.W_V[head, part[reads]] = drawn[name]
            attn.W_O[head, :, part[writes]] = torch.eye(_D, dtype=torch.float64)
    return model
