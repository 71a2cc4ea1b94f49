"""A copying head beside a decoy that looks at the very same place, takes the same thing, and matters to nothing."""

import math

import torch

from interp.constructions.known_circuit import KnownCircuit, blank_model, paired_prompts
from tasks.field_checks import check_real

_N_POS = 4
_N_ANSWERS = 2 * _N_POS
_N_TOKENS = _N_ANSWERS + _N_POS  # the last are neutral: they are never an answer


def copy_circuit(*, attention_logit: float = 8.0, copy_logit: float = 2.0) -> KnownCircuit:
    """One layer, two heads: L0H0 copies the previous token, L0H1 looks and reads alike and writes where nobody reads.

    The residual stream holds token, position, answer and waste by themselves. Both heads ask for the previous
    position (score β = ``attention_logit``) and take its token; L0H0 adds γ = ``copy_logit`` to its answer, L0H1 the
    same to the waste. With T = 4 positions the previous one gets p = e^β / (e^β + T − 1) of the attention.

    Prompt i holds tokens i … i + T − 1 (modulo 2T) and is scored at the end, so the answer is i + T − 2; the
    counterfactual holds the other T. Nothing but the answer is an answer or a wrong one, so the logit difference is
    γ p. What takes the head's output away costs γ p, what puts the counterfactual's there 2 γ p; asking or answering
    without positions leaves an even γ / T.

    Raises:
        InputError: a logit that is not finite and above 0.

    >>> known = copy_circuit()
    >>> round(known.baseline, 4), known.effect("zero", "L0H0") == -known.baseline, known.effect("zero", "L0H1")
    (1.998, True, 0.0)
    """
    check_real("attention_logit", attention_logit)
    check_real("copy_logit", copy_logit)
    beta, gamma, n_tokens = attention_logit, copy_logit, _N_TOKENS
    token, position = slice(0, n_tokens), slice(n_tokens, n_tokens + _N_POS)
    answer, waste = (slice(start, start + n_tokens) for start in (position.stop, position.stop + n_tokens))
    model = blank_model(
        n_layers=1, n_heads=2, d_model=waste.stop, d_head=n_tokens, n_ctx=_N_POS, d_vocab=n_tokens,
        attn_only=True, use_biases=False,
    )  # fmt: skip
    one_each, attn = torch.eye(n_tokens, dtype=torch.float64), model.blocks[0].attn
    with torch.no_grad():
        model.W_E[:, token] = one_each
        model.W_pos[:, position] = torch.eye(_N_POS, dtype=torch.float64)
        model.W_U[answer] = one_each
        attn.W_Q[:, position, :_N_POS] = beta * math.sqrt(n_tokens) * torch.eye(_N_POS, dtype=torch.float64)
        attn.W_K[:, position, :_N_POS] = torch.eye(_N_POS, dtype=torch.float64).roll(1, dims=1)
        attn.W_K[:, position.stop - 1] = 0  # nothing follows the last position
        attn.W_V[:, token] = one_each
        attn.W_O[0, :, answer] = gamma * one_each
        attn.W_O[1, :, waste] = gamma * one_each
    rows = [[(first + t) % _N_ANSWERS for t in range(_N_POS)] for first in range(_N_ANSWERS)]
    others = [[(token + _N_POS) % _N_ANSWERS for token in row] for row in rows]
    prompts, reference = paired_prompts(rows, others, _N_POS - 2, list(range(_N_ANSWERS, n_tokens)))
    p = math.exp(beta) / (math.exp(beta) + _N_POS - 1)
    gone, swapped, even = {"L0H0": -gamma * p}, {"L0H0": -2 * gamma * p}, gamma * (1 / _N_POS - p)
    return KnownCircuit(
        name="copy with a decoy",
        about="L0H0 copies the previous token; L0H1 attends and reads alike, and writes where nobody reads",
        model=model,
        prompts=prompts,
        reference=reference,
        true_edges=frozenset(
            {"pos_embed->L0H0.q", "pos_embed->L0H0.k", "embed->L0H0.v", "L0H0->output"},
        ),
        effects={
            **dict.fromkeys(("zero", "mean", "resample", "gradient", "integrated", "shapley"), gone),
            "counterfactual": swapped,
            "restored": {"L0H0": 2 * gamma * p},
            "direct": {"L0H0": gamma * p},
            "pairs": {},
            "edges, zero": {
                "pos_embed->L0H0.q": even,
                "pos_embed->L0H0.k": even,
                "embed->L0H0.v": -gamma * p,
                "L0H0->output": -gamma * p,
            },
            "edges, counterfactual": dict.fromkeys(("embed->L0H0.v", "L0H0->output"), -2 * gamma * p),
        },
        baseline=gamma * p,
        decoys=("L0H1",),
    )
