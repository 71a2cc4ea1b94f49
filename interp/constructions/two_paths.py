"""Heads whose answer travels by two paths: straight to the output, and through an MLP that needs all of them."""

import math

import torch

from interp.constructions.known_circuit import KnownCircuit, blank_model, paired_prompts
from tasks.errors import InputError
from tasks.field_checks import check_real

_N_POS, _N_ANSWERS = 3, 8
_N_TOKENS = _N_ANSWERS + 1 + 2  # a spare answer and two fillers
# what each head sends: to the feed-forward part, and to the output (in units of the copy's logit)
_TO_MLP, _TO_OUTPUT = (2.0, 1.0, 1.0, 0.0), (1.0, 0.5, 0.5, 0.0)
_THRESHOLD = 3.0
_LEAST_ATTENTION = math.log(6)  # where 4p = 3


def two_path_circuit(
    *, attention_logit: float = 8.0, copy_logit: float = 2.0, joint_logit: float = 6.0
) -> KnownCircuit:
    """One layer of four heads and a ReLU MLP, with a Shapley value that is known, and that is not the gradient's.

    Every prompt is (answer, filler, filler), scored at the end. All heads look at position 0, which gets
    p = e^β / (e^β + 2) of their attention, β = ``attention_logit``. L0H0, L0H1 and L0H2 send the answer along

    - straight to the output: γ α p logits with α = 1, ½, ½ and γ = ``copy_logit``,
    - to the MLP: w p with w = 2, 1, 1; it adds κ relu(Σ w p − 3), κ = ``joint_logit``: κ (4p − 3) with all
      three, and nothing if one is missing.

    L0H1 and L0H2 are twins (symmetry) and L0H3 looks as they do and writes where nobody reads (dummy). A set S of
    heads that are zeroed costs v(S) = −γ p Σ_S α − κ (4p − 3) [S holds one of the three], so that the Shapley value
    is −(γ α p + κ (4p − 3) / 3): the joint part is shared evenly. Integrated gradients share it by w, as 2 : 1 : 1,
    and a plain gradient gives each all that it sends, w κ p, which is too much.

    Raises:
        InputError: a logit that is not finite and above 0, or attention so blunt that the MLP never fires.

    >>> known = two_path_circuit()
    >>> [round(value, 2) for value in known.effects["shapley"].values()]
    [-3.99, -2.99, -2.99]
    >>> [round(value, 2) for value in known.effects["integrated"].values()]
    [-4.99, -2.5, -2.5]
    """
    for name, value in (("attention_logit", attention_logit), ("copy_logit", copy_logit), ("joint_logit", joint_logit)):
        check_real(name, value)
    if attention_logit <= _LEAST_ATTENTION:
        raise InputError(
            f"attention_logit = {attention_logit} leaves all heads together below the MLP's threshold: give more than "
            f"{_LEAST_ATTENTION:.2f}"
        )
    gamma, kappa = copy_logit, joint_logit
    p = math.exp(attention_logit) / (math.exp(attention_logit) + _N_POS - 1)
    joint = kappa * (4 * p - _THRESHOLD)
    heads = {f"L0H{head}": (_TO_MLP[head], gamma * _TO_OUTPUT[head]) for head in range(3)}

    def weakened(w: float, alpha: float, kept: float, wrong: float = 0.0) -> float:
        """The change where a head attends to the answer by ``kept`` and not p, and to the wrong one by ``wrong``."""
        right = max(0.0, (4 - w) * p + w * kept - _THRESHOLD)
        return alpha * (kept - wrong - p) + kappa * (right - max(0.0, w * wrong - _THRESHOLD)) - joint

    def of_heads(kept: float, wrong: float = 0.0, mlp: float | None = None) -> dict[str, float]:
        found = {head: weakened(w, alpha, kept, wrong) for head, (w, alpha) in heads.items()}
        return found if mlp is None else found | {"L0.mlp": mlp}

    swapped = of_heads(0.0, p)
    even = of_heads(1 / _N_POS)
    edges_zero = {f"pos_embed->{head}.{each}": even[head] for head in heads for each in "qk"}
    edges_zero |= {f"embed->{head}.v": effect for head, effect in of_heads(0.0).items()}
    edges_zero |= {f"{head}->L0.mlp": -joint for head in heads}
    edges_zero |= {f"{head}->output": -alpha * p for head, (_, alpha) in heads.items()} | {"L0.mlp->output": -joint}
    edges_swapped = {f"embed->{head}.v": effect for head, effect in swapped.items()}
    edges_swapped |= {f"{head}->L0.mlp": -joint for head in heads}
    edges_swapped |= {f"{head}->output": -2 * alpha * p for head, (_, alpha) in heads.items()}
    edges_swapped |= {"L0.mlp->output": -2 * joint}
    prompts, reference = _prompts()
    return KnownCircuit(
        name="two paths",
        about="three heads and an MLP that needs all three; L0H1 and L0H2 are twins, L0H3 is a dummy",
        model=_model(attention_logit, gamma, kappa),
        prompts=prompts,
        reference=reference,
        true_edges=frozenset(edges_zero),
        effects={
            **dict.fromkeys(("zero", "resample"), of_heads(0.0, mlp=-joint)),
            "mean": of_heads(p / _N_ANSWERS, p / _N_ANSWERS, mlp=-joint),
            "counterfactual": swapped | {"L0.mlp": -2 * joint},
            "restored": {head: 2 * alpha * p + joint for head, (_, alpha) in heads.items()} | {"L0.mlp": 2 * joint},
            "direct": {head: alpha * p for head, (_, alpha) in heads.items()} | {"L0.mlp": joint},
            "gradient": {head: -p * (alpha + kappa * w) for head, (w, alpha) in heads.items()} | {"L0.mlp": -joint},
            "integrated": {head: -alpha * p - joint * w / 4 for head, (w, alpha) in heads.items()},
            "shapley": {head: -alpha * p - joint / 3 for head, (_, alpha) in heads.items()},
            "pairs": dict.fromkeys(("L0H0+L0H1", "L0H0+L0H2", "L0H1+L0H2"), joint),
            "edges, zero": edges_zero,
            "edges, counterfactual": edges_swapped,
        },
        baseline=gamma * 2 * p + joint,
        # a midpoint is off by half a cell at a kink, and on the way to the counterfactual there are two
        quadrature=(kappa * sum(_TO_MLP) * p, 1),
        decoys=("L0H3",),
    )


def _model(beta: float, gamma: float, kappa: float):
    token, position = slice(0, _N_TOKENS), slice(_N_TOKENS, _N_TOKENS + _N_POS)
    asked, answer, waste = (slice(position.stop + k * _N_TOKENS, position.stop + (k + 1) * _N_TOKENS) for k in range(3))
    model = blank_model(
        n_layers=1, n_heads=4, d_model=waste.stop, d_head=_N_TOKENS, d_mlp=_N_TOKENS, n_ctx=_N_POS, d_vocab=_N_TOKENS,
    )  # fmt: skip
    one_each, attn, mlp = torch.eye(_N_TOKENS, dtype=torch.float64), model.blocks[0].attn, model.blocks[0].mlp
    with torch.no_grad():
        model.W_E[:, token] = one_each
        model.W_pos[:, position] = torch.eye(_N_POS, dtype=torch.float64)
        model.W_U[answer] = one_each
        attn.W_Q[:, position.stop - 1, 0] = beta * math.sqrt(_N_TOKENS)
        attn.W_K[:, position.start, 0] = 1
        attn.W_V[:, token] = one_each
        for head, (w, alpha) in enumerate(zip(_TO_MLP, _TO_OUTPUT, strict=True)):
            attn.W_O[head, :, asked] = w * one_each
            attn.W_O[head, :, answer] = gamma * alpha * one_each
        attn.W_O[3, :, waste] = one_each
        mlp.get_parameter("W_in")[asked] = one_each
        mlp.get_parameter("b_in").fill_(-_THRESHOLD)
        mlp.get_parameter("W_out")[:, answer] = kappa * one_each
    return model


def _prompts():
    fillers = [_N_TOKENS - 2, _N_TOKENS - 1]
    rows = [[answer, *fillers] for answer in range(_N_ANSWERS)]
    others = [[(answer + _N_ANSWERS // 2) % _N_ANSWERS, *fillers] for answer in range(_N_ANSWERS)]
    return paired_prompts(rows, others, 0, [_N_ANSWERS, *fillers])
