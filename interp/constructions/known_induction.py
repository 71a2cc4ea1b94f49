"""The induction circuit with the truth about every head and edge, with and without crosstalk between embeddings."""

import math
from collections.abc import Mapping

import torch

from interp.constructions.induction import induction_circuit
from interp.constructions.known_circuit import KnownCircuit, paired_prompts
from interp.constructions.plain_forward import measured_effects
from tasks.field_checks import check_real, check_whole

_TRIGGER, _N_ANSWERS = 0, 8
_EDGES = (
    "pos_embed->L0H0.q",  # a position asks for the one before it
    "pos_embed->L0H0.k",
    "embed->L0H0.v",  # whose token is taken along
    "L0H0->L1H0.k",  # and is the key
    "embed->L1H0.q",  # which the token asks for
    "embed->L1H0.v",  # to copy the token there
    "L1H0->output",
)
_NOT_AT_THE_START = "pos_embed->L1H0.k"  # position 0 is told that it has no predecessor


def known_induction(*, attention_logit: float = 20.0, copy_logit: float = 6.0) -> KnownCircuit:
    """``induction_circuit`` with orthonormal embeddings on prompts (trigger, answer, x, y, trigger).

    β = ``attention_logit`` and γ = ``copy_logit``; all that follows holds up to a few e^(−β).
    The last position finds position 1 and copies the answer there: the logit difference is γ. Without L0H0, or with a
    neutral prompt's, the trigger finds nothing and looks at positions 1 to 4 alike (position 0 is told off): γ / 4. The
    mean over the prompts and the counterfactual keep L0H0 as it is where it matters, since nothing but the answer
    differs. Without positions L0H0 takes the mean of all tokens so far, so that the keys of positions 0 to 4 hold the
    trigger by 1 − 1, 1/2, 1/3, 1/4 and 2/5. Without its position, position 0 is taken for what follows a trigger, and
    gets half of the attention. The derivative with respect to L0H0 is zero, since the attention is saturated.

    Raises:
        InputError: a logit that is not finite and above 0.

    >>> known = known_induction()
    >>> round(known.effect("zero", "L0H0"), 6), round(known.effect("edges, zero", "L0H0->L1H0.k"), 6)
    (-4.5, -4.5)
    """
    check_real("attention_logit", attention_logit)
    check_real("copy_logit", copy_logit)
    beta, gamma, n_pos = attention_logit, copy_logit, 5
    fillers = [1 + _N_ANSWERS + k for k in range(5)]
    prompts, reference = _prompts(lambda answer: [_TRIGGER, answer, *fillers[:2], _TRIGGER], 1, fillers)
    circuit = induction_circuit(
        d_vocab=1 + _N_ANSWERS + len(fillers), n_ctx=n_pos, triggers=[_TRIGGER], attention_logit=beta,
        copy_logit=gamma, dtype=torch.float64,
    )  # fmt: skip
    lost = gamma / (4 + math.exp(-beta)) - gamma
    keys = (0, 1 / 2, 1 / 3, 1 / 4, 2 / 5)
    blurred = gamma * math.exp(beta / 2) / sum(math.exp(beta * key) for key in keys) - gamma
    blind = gamma / n_pos - gamma
    edges: Mapping[str, float] = {
        **dict.fromkeys(("pos_embed->L0H0.q", "pos_embed->L0H0.k"), blurred),
        **dict.fromkeys(("embed->L0H0.v", "L0H0->L1H0.k"), lost),
        "embed->L1H0.q": blind,
        **dict.fromkeys(("embed->L1H0.v", "L1H0->output"), -gamma),
        _NOT_AT_THE_START: -gamma / 2,
    }
    return KnownCircuit(
        name="induction",
        about="L0H0 writes the previous token; L1H0 finds the last trigger by it and copies what followed",
        model=circuit.model,
        prompts=prompts,
        reference=reference,
        true_edges=frozenset(edges),
        effects={
            **{key: {"L0H0": lost, "L1H0": -gamma} for key in ("zero", "resample", "integrated")},
            **{key: {"L0H0": 0.0, "L1H0": -gamma} for key in ("mean", "gradient")},
            "counterfactual": {"L0H0": 0.0, "L1H0": -2 * gamma},
            "restored": {"L0H0": 0.0, "L1H0": 2 * gamma},
            "direct": {"L0H0": 0.0, "L1H0": gamma},
            "shapley": {"L0H0": lost / 2, "L1H0": -gamma - lost / 2},
            "pairs": {"L0H0+L1H0": -lost},
            "edges, zero": edges,
            "edges, counterfactual": dict.fromkeys(("embed->L1H0.v", "L1H0->output"), -2 * gamma),
        },
        baseline=gamma,
        quadrature=_quadrature(beta, gamma),
    )


def known_induction_with_crosstalk(
    *, d_model: int = 128, attention_logit: float = 20.0, copy_logit: float = 6.0, seed: int = 0
) -> KnownCircuit:
    """The same circuit with random embeddings, which overlap by about 1/√d_model: every edge does a little.

    The prompts are (x, trigger, answer, y, trigger), since with random embeddings nothing tells position 0 off. There
    is no closed form: the effects are those of the plain forward pass, component by component and edge by edge. A
    layer has one head, so that integrated gradients must give what zeroing it does (completeness).

    Raises:
        InputError: a width or logit out of range.

    >>> known = known_induction_with_crosstalk()
    >>> known.crosstalk, len(known.true_edges) < len(known.effects["edges, zero"])
    (True, True)
    """
    check_whole("d_model", d_model, 1)
    check_real("attention_logit", attention_logit)
    check_real("copy_logit", copy_logit)
    fillers = [1 + _N_ANSWERS + k for k in range(5)]
    prompts, reference = _prompts(lambda answer: [fillers[0], _TRIGGER, answer, fillers[1], _TRIGGER], 2, fillers)
    model = induction_circuit(
        d_vocab=1 + _N_ANSWERS + len(fillers), n_ctx=5, triggers=[_TRIGGER], d_model=d_model, embeddings="random",
        attention_logit=attention_logit, copy_logit=copy_logit, seed=seed, dtype=torch.float64,
    ).model  # fmt: skip
    effects = measured_effects(model, prompts, reference)
    clean = sum(effects["direct"].values())
    return KnownCircuit(
        name="induction with crosstalk",
        about="the induction circuit on embeddings that are random and so not orthogonal",
        model=model,
        prompts=prompts,
        reference=reference,
        true_edges=frozenset(_EDGES),
        effects=effects | {"integrated": effects["zero"]},
        baseline=clean,
        quadrature=_quadrature(2 * attention_logit, 2 * copy_logit),
        crosstalk=True,
    )


def _quadrature(beta: float, gamma: float) -> tuple[float, int]:
    """Attention falls along the way as a logistic function of β does, whose third derivative is at most β³/8."""
    return gamma * beta**3 / 8 / 24, 2


def _prompts(row, answer_at: int, fillers: list[int]):
    answers = range(1, 1 + _N_ANSWERS)
    rows = [row(answer) for answer in answers]
    others = [row(1 + (answer - 1 + _N_ANSWERS // 2) % _N_ANSWERS) for answer in answers]
    return paired_prompts(rows, others, answer_at, fillers)
