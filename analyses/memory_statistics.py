"""How well a memory remembers, and how likely a memory of nothing would look as good."""

import math
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tasks.errors import InputError

EXACT_UP_TO = 512
"""Keys up to which the permutation p-value is exact (0.02 s at 512 keys); beyond, permutations are drawn."""
_ROUNDING = 1e-9  # two orders of the same sum differ by less, relatively


@dataclass(frozen=True)
class Recall:
    """How many queries find their own key, and how clearly.

    Attributes:
        hits: queries whose own key scores strictly higher than every other (a tie is no recall).
        n: queries asked.
        chance: the recall to expect when keys carry random labels, 1 / number of keys.
        p_value: see ``permutation_p_value``.
        margin: mean over queries of (own score − best other score), in units of the spread (standard deviation)
            of all other scores; positive where the own key wins.
        crosstalk: that spread divided by (mean own score − mean other score): 0 for a perfect memory.
    """

    hits: int
    n: int
    chance: float
    p_value: float
    margin: float
    crosstalk: float

    @property
    def recall(self) -> float:
        """hits / n."""
        return self.hits / self.n


def recall_of(
    scores: Float[Tensor, "query key"],
    answer: Int[Tensor, "query"],
    *,
    n_permutations: int = 2000,
    seed: int = 0,
) -> Recall:
    """The recall of a score matrix whose query i should find key ``answer[i]``; every query another key.

    Raises:
        InputError: a score that is NaN or infinite.

    >>> recall_of(torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0], [5.0, 0.0, 1.0]]), torch.arange(3)).hits
    2
    """
    best = unique_best(scores)
    hits = int((best == answer).sum())
    margin, crosstalk = separation(scores, answer)
    return Recall(
        hits=hits,
        n=len(answer),
        chance=1 / scores.shape[1],
        p_value=permutation_p_value(best, answer, scores.shape[1], n_permutations=n_permutations, seed=seed),
        margin=margin,
        crosstalk=crosstalk,
    )


def unique_best(scores: Float[Tensor, "query key"]) -> Int[Tensor, "query"]:
    """The key with the strictly highest score for each query, −1 where two share it.

    Raises:
        InputError: a score that is NaN or infinite.

    >>> unique_best(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    tensor([ 1, -1])
    """
    if not bool(torch.isfinite(scores).all()):
        raise InputError("the scores hold NaN or infinity: the model's weights are broken, see its training history")
    if scores.shape[1] == 1:
        return torch.zeros(len(scores), dtype=torch.int64)
    top = scores.topk(2, dim=1)
    return torch.where(top.values[:, 0] > top.values[:, 1], top.indices[:, 0], -1)


def separation(scores: Float[Tensor, "query key"], answer: Int[Tensor, "query"]) -> tuple[float, float]:
    """(margin, crosstalk) as ``Recall`` defines them; NaN where other scores do not exist or do not vary at all.

    >>> separation(torch.tensor([[4.0, 1.0], [-1.0, 4.0]]), torch.arange(2))
    (4.0, 0.25)
    """
    if scores.shape[1] == 1:
        return math.nan, math.nan
    own = scores.gather(1, answer[:, None])
    is_own = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, answer[:, None], value=True)
    best_other = scores.masked_fill(is_own, -torch.inf).amax(dim=1)
    other = scores[~is_own].double()
    spread = float(other.std(correction=0))
    gap = float(own.double().mean() - other.mean())
    margin = float((own[:, 0] - best_other).double().mean())
    return (margin / spread if spread else math.nan), (spread / gap if spread and gap else math.nan)


def permutation_p_value(
    best: Int[Tensor, "query"], answer: Int[Tensor, "query"], n_keys: int, *, n_permutations: int = 2000, seed: int = 0
) -> float:
    """How often keys with randomly dealt labels would be found at least as often.

    The map from queries to their best key stays as it is, so that a key which wins many queries (a hub) counts as
    one under the null too; only the keys' labels are permuted. p = P(hits ≥ observed) over all n_keys! permutations,
    exactly, for up to ``EXACT_UP_TO`` keys; beyond, (1 + number of ``n_permutations`` random ones that hit at
    least as often) / (1 + n_permutations).

    How it is exact: let c_j be the number of queries whose best key is j. There are r_k = e_k(c_1, c_2, …) ways
    (an elementary symmetric polynomial) to choose k queries with k different best keys, and (N − k)! permutations
    make a given choice hit. By inclusion and exclusion, P(hits ≥ h) = Σ_{k≥h} (−1)^{k−h} C(k−1, h−1) r_k (N−k)!/N!.

    The null says that labels are exchangeable: it holds for embeddings (and positions) that were drawn independently.
    ``best`` is −1 for a query without a single best key: it can never hit.

    >>> permutation_p_value(torch.tensor([0, 1, 2]), torch.arange(3), 3) == 1 / 6
    True
    """
    hits = int((best == answer).sum())
    if hits == 0:
        return 1.0
    if n_keys > EXACT_UP_TO:
        return _drawn_p_value(best.numpy(), answer.numpy(), n_keys, hits, n_permutations, seed)
    rooks = [1]
    for count in Counter(best[best >= 0].tolist()).values():
        rooks = [a + count * b for a, b in zip([*rooks, 0], [0, *rooks], strict=True)]
    favourable = sum(
        (-1) ** (k - hits) * math.comb(k - 1, hits - 1) * rooks[k] * math.factorial(n_keys - k)
        for k in range(hits, len(rooks))
    )
    return max(favourable / math.factorial(n_keys), sys.float_info.min)  # 1/256! is no zero, but no double either


def _drawn_p_value(
    best: np.ndarray, answer: np.ndarray, n_keys: int, hits: int, n_permutations: int, seed: int
) -> float:
    generator = np.random.default_rng(seed)
    as_many = sum(int((generator.permutation(n_keys)[answer] == best).sum()) >= hits for _ in range(n_permutations))
    return (1 + as_many) / (1 + n_permutations)


def pairing_p_value(table: Float[Tensor, "n n"], *, n_permutations: int = 2000, seed: int = 0) -> float:
    """How often rows paired with randomly dealt columns would have as low a mean as the diagonal.

    All n! pairings if they are no more than ``n_permutations``; else that many random ones, with
    p = (1 + as low) / (1 + n_permutations).

    >>> pairing_p_value(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    0.5
    """
    values = table.double().numpy()
    n = len(values)
    exact = n <= 20 and math.factorial(n) <= n_permutations
    if exact:
        orders = np.array(list(permutations(range(n))))
    else:
        generator = np.random.default_rng(seed)
        orders = generator.permuted(np.tile(np.arange(n), (n_permutations, 1)), axis=1)
    means = values[np.arange(n), orders].mean(axis=1)
    observed = values.diagonal().mean()
    as_low = int((means <= observed + _ROUNDING * abs(observed)).sum())
    return as_low / len(orders) if exact else (1 + as_low) / (1 + n_permutations)


def cosine(a: Float[Tensor, "d_in d_out"], b: Float[Tensor, "d_in d_out"]) -> float:
    """The cosine of two matrices taken as vectors; NaN if one of them is zero.

    >>> cosine(torch.eye(4), torch.diag(torch.tensor([9.0, 0.0, 0.0, 0.0])))
    0.5
    """
    length = float(a.double().norm() * b.double().norm())
    return float((a.double() * b.double()).sum()) / length if length else math.nan
