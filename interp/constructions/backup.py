"""A head that copies the answer, and one behind it that does the same, but only where the first is missing."""

import math

import torch

from interp.constructions.known_circuit import KnownCircuit, blank_model, paired_prompts
from tasks.field_checks import check_real

_N_POS = 4
_N_ANSWERS, _N_SPARE = 8, 1
_FIRST = 1 + _N_ANSWERS + _N_SPARE  # token 0 begins every prompt; the last two fill it
_N_TOKENS = _FIRST + 2


def backup_circuit(*, attention_logit: float = 16.0, copy_logit: float = 2.0) -> KnownCircuit:
    """Two layers, one head each: L0H0 copies the answer and says so; L1H0 copies it unless it has been said.

    Every prompt is (begin, answer, filler, filler), scored at the end. L0H0 looks at position 1 with score β =
    ``attention_logit``, which gives it p = e^β / (e^β + 3) of the attention; it adds γ = ``copy_logit`` to the answer's
    logit and writes a flag, as every answer carries a mark. L1H0 looks at position 1 with score β as well, and at the
    beginning with 2β times the flag. With a flag f the answer gets B(f) = e^β / (e^β + e^(2βf) + 2) of its attention:
    B(p) is less than 1e-6, and B(0) is nearly 1.

    So the logit difference is γ (p + B(p)). Zeroing L0H0 costs next to nothing, γ (B(0) − p − B(p)), since L1H0
    steps in, and zeroing L1H0 alone γ B(p), nothing at all; both, everything. The mean of L0H0, or another prompt's
    output, holds the flag, so the backup stays silent and the whole γ p is lost.

    Raises:
        InputError: a logit that is not finite and above 0.

    >>> known = backup_circuit()
    >>> [round(known.effect("zero", head), 4) + 0.0 for head in ("L0H0", "L1H0")]
    [0.0, 0.0]
    >>> [round(known.effect("shapley", head), 4) for head in ("L0H0", "L1H0")]
    [-1.0, -1.0]
    """
    check_real("attention_logit", attention_logit)
    check_real("copy_logit", copy_logit)
    beta, gamma = attention_logit, copy_logit
    p = math.exp(beta) / (math.exp(beta) + _N_POS - 1)

    def backup(flag: float) -> float:
        """The answer's share of the backup's attention."""
        return math.exp(beta) / (math.exp(beta) + math.exp(2 * beta * flag) + _N_POS - 2)

    clean = gamma * (p + backup(p))
    first, second, both = gamma * backup(0.0) - clean, -gamma * backup(p), -clean
    slope = -2 * beta * math.exp(beta + 2 * beta * p) / (math.exp(beta) + math.exp(2 * beta * p) + _N_POS - 2) ** 2
    unseen = gamma * (1 / _N_POS + backup(1 / _N_POS)) - clean
    flagless, beginless = gamma * (backup(0.0) - backup(p)), gamma * (1 / _N_POS - backup(p))
    unasked = gamma * (1 / (math.exp(2 * beta * p) + _N_POS - 1) - backup(p))
    prompts, reference = _prompts()
    return KnownCircuit(
        name="backup head",
        about="L0H0 copies the answer; L1H0 copies it too, but only where L0H0's flag is missing",
        model=_model(beta, gamma),
        prompts=prompts,
        reference=reference,
        true_edges=frozenset({
            "pos_embed->L0H0.q", "pos_embed->L0H0.k", "embed->L0H0.v", "L0H0->output", "L0H0->L1H0.q",
            "pos_embed->L1H0.q", "pos_embed->L1H0.k", "embed->L1H0.v", "L1H0->output",
        }),
        effects={
            "zero": {"L0H0": first, "L1H0": second},
            **{key: {"L0H0": -gamma * p, "L1H0": second} for key in ("mean", "resample")},
            "counterfactual": {"L0H0": -2 * gamma * p, "L1H0": 2 * second},
            "restored": {"L0H0": 2 * gamma * p, "L1H0": -2 * second},
            "direct": {"L0H0": gamma * p, "L1H0": -second},
            "gradient": {"L0H0": -gamma * p * (1 + slope), "L1H0": second},
            "integrated": {"L0H0": first, "L1H0": second},
            "shapley": {"L0H0": (first + both - second) / 2, "L1H0": (second + both - first) / 2},
            "pairs": {"L0H0+L1H0": both - first - second},
            "edges, zero": {
                "pos_embed->L0H0.q": unseen,
                "pos_embed->L0H0.k": unseen,
                "embed->L0H0.v": first,
                "L0H0->output": -gamma * p,
                "L0H0->L1H0.q": flagless,
                "pos_embed->L1H0.q": unasked,
                "pos_embed->L1H0.k": beginless,
                "embed->L1H0.v": second,
                "L1H0->output": second,
            },
            "edges, counterfactual": {
                **dict.fromkeys(("embed->L0H0.v", "L0H0->output"), -2 * gamma * p),
                **dict.fromkeys(("embed->L1H0.v", "L1H0->output"), 2 * second),
            },
        },
        baseline=clean,
        # |B″′| is at most (2β)³/8, and a midpoint sum is off by at most a 24th of the largest second derivative
        quadrature=(gamma * (2 * beta * p) ** 3 / 8 / 24, 2),
        backups=("L1H0",),
    )  # fmt: skip


def _model(beta: float, gamma: float):
    token, position = slice(0, _N_TOKENS), slice(_N_TOKENS, _N_TOKENS + _N_POS)
    mark, flag = position.stop, position.stop + 1
    answer = slice(flag + 1, flag + 1 + _N_TOKENS)
    d_head = _N_TOKENS + 1
    model = blank_model(
        n_layers=2, n_heads=1, d_model=answer.stop, d_head=d_head, n_ctx=_N_POS, d_vocab=_N_TOKENS,
        attn_only=True, use_biases=False,
    )  # fmt: skip
    one_each, scale = torch.eye(_N_TOKENS, dtype=torch.float64), math.sqrt(d_head)
    with torch.no_grad():
        model.W_E[:, token] = one_each
        model.W_E[1:_FIRST, mark] = 1
        model.W_pos[:, position] = torch.eye(_N_POS, dtype=torch.float64)
        model.W_U[answer] = one_each
        for block in model.blocks:
            attn = block.attn
            attn.W_Q[0, position.stop - 1, 0] = beta * scale  # the last position asks
            attn.W_K[0, position.start + 1, 0] = 1  # position 1 answers
            attn.W_V[0, token.start + 1 : token.stop, 1:_N_TOKENS] = one_each[1:, 1:]  # the beginning says nothing
            attn.W_O[0, :_N_TOKENS, answer] = gamma * one_each
        first, second = (block.attn for block in model.blocks)
        first.W_V[0, mark, _N_TOKENS] = 1
        first.W_O[0, _N_TOKENS, flag] = 1
        second.W_Q[0, flag, 1] = 2 * beta * scale  # where the flag is up, the beginning answers louder
        second.W_K[0, position.start, 1] = 1
    return model


def _prompts():
    fillers = [_FIRST, _FIRST + 1]
    rows = [[0, 1 + answer, *fillers] for answer in range(_N_ANSWERS)]
    others = [[0, 1 + (answer + _N_ANSWERS // 2) % _N_ANSWERS, *fillers] for answer in range(_N_ANSWERS)]
    return paired_prompts(rows, others, 1, [0, _FIRST - 1, *fillers])
