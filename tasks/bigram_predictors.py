"""Reference in-context algorithms for the bigram task: what a model that knows only so much would predict.

Each is built from the task and maps prompts to log-probabilities [batch, pos, vocab], like a model. No probability is
zero: every distribution p is mixed to (1 - vocab · FLOOR) p + FLOOR, so that a target the predictor holds for
impossible costs -log FLOOR = 18.4 nats instead of infinity. Losses where that happens measure the floor, not the
algorithm: compare accuracies there.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tasks.bigram import BigramICL
from tasks.bigram_sampling import inclusion_probabilities
from tasks.errors import InputError
from tasks.prompts import Prompts, Seed

FLOOR = 1e-8
BLOCK = 1024
SMOOTHING = 4


@dataclass(frozen=True)
class GlobalBigram:
    """Sees the current token and knows no triggers: p = π_b(.|z_t). The best predictor where z_t is no trigger.

    >>> task = BigramICL(seq_len=8)
    >>> GlobalBigram(task)(task.sample(2, seed=0)).shape
    torch.Size([2, 8, 63])
    """

    task: BigramICL

    def __call__(self, prompts: Prompts) -> Float[Tensor, "batch pos vocab"]:
        inputs = _inputs_of(prompts, self.task)
        return _log_floored(_tensor(self.task.stats.bigram, inputs)[inputs])


@dataclass(frozen=True)
class CurrentToken:
    """The best predictor that sees only z_t: chance, for the positions that the task scores.

    p = P(target | z_t = i, position scored) = a_i g_i + (1 - a_i) π_b(.|i), where a_i is the share of i's scored
    positions at which it is a trigger (0 or 1 if triggers are fixed), and g_i is the law of outputs weighted by how
    often an output lets its trigger come again, g_i(v) ∝ law(v|i) m_i(v): an output that leads back to the trigger is
    scored more often, and with repeats allowed "the same token again" is by far the best guess. a_i and m_i, the mean
    number of scored occurrences in prompts where i has the output v, have no closed form: they are counted in
    ``n_prompts`` prompts that the task draws from ``seed``. m_i(v) is smoothed by SMOOTHING prompts of the mean over
    v; a token that is never scored has a_i = P(i is a trigger) and m_i = 1.

    >>> task = BigramICL(seq_len=8)
    >>> CurrentToken(task, n_prompts=64)(task.sample(2, seed=0)).shape
    torch.Size([2, 8, 63])
    """

    task: BigramICL
    n_prompts: int = 16384
    seed: Seed = 0

    def __call__(self, prompts: Prompts) -> Float[Tensor, "batch pos vocab"]:
        inputs = _inputs_of(prompts, self.task)
        return _log_floored(_tensor(self.table, inputs)[inputs])

    @cached_property
    def table(self) -> Float[np.ndarray, "vocab vocab"]:
        """Row i: the distribution predicted after token i."""
        task, size = self.task, self.task.d_vocab
        firsts, triggers, others = (np.zeros((size, size)) for _ in range(3))
        for start in range(0, self.n_prompts, BLOCK):
            own = task.sample(min(BLOCK, self.n_prompts - start), seed=(*_parts_of(self.seed), start))
            pair = own.inputs * size + own.targets
            trigger = own.labels["trigger"]
            for counts, where in (
                (firsts, own.labels["occurrence"] == 1),
                (triggers, own.scored & trigger),
                (others, own.scored & ~trigger),
            ):
                counts += pair[where].bincount(minlength=size * size).reshape(size, size).numpy()

        n_triggers, n_others = triggers.sum(axis=1), others.sum(axis=1)
        mean = n_triggers / np.maximum(firsts.sum(axis=1), 1)
        mean = np.where(mean > 0, mean, 1)[:, None]
        law = task.output_law * (triggers + SMOOTHING * mean) / (firsts + SMOOTHING)
        law /= np.maximum(law.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        scored = n_triggers + n_others
        share = np.where(scored > 0, n_triggers / np.maximum(scored, 1), trigger_probabilities(task))[:, None]
        return share * law + (1 - share) * task.stats.bigram


@dataclass(frozen=True)
class InContextUnigram:
    """Sees the current token and how often each token has occurred: what one layer of attention can do.

    Let c_v be the count of token v among z_1 … z_t and e_v = t π_u(v) its expectation. A token's evidence of being
    over-represented is s_v = c_v log(c_v / e_v) - (c_v - e_v) if c_v > e_v, else 0: the Poisson log-likelihood
    ratio of its own rate against π_u. The output is guessed as the most over-represented token,
    g = (s + law(.|z_t)) / (Σ_v s_v + 1), with one nat of the law of outputs as a prior, and
    p = r g + (1 - r) π_b(.|z_t), where r is the probability that z_t is a trigger (0 or 1 if they are fixed).

    >>> task = BigramICL(seq_len=8)
    >>> InContextUnigram(task)(task.sample(2, seed=0)).shape
    torch.Size([2, 8, 63])
    """

    task: BigramICL

    def __call__(self, prompts: Prompts) -> Float[Tensor, "batch pos vocab"]:
        inputs = _inputs_of(prompts, self.task)
        evidence = over_representation(inputs, _tensor(self.task.stats.unigram, inputs))
        law = _tensor(self.task.output_law, inputs)[inputs]
        guess = (evidence + law) / (evidence.sum(dim=-1, keepdim=True) + 1)
        rate = _tensor(trigger_probabilities(self.task), inputs)[inputs][..., None]
        return _log_floored(torch.lerp(_tensor(self.task.stats.bigram, inputs)[inputs], guess, rate))


@dataclass(frozen=True)
class InContextCopy:
    """The induction head: what followed the current token last in this prompt follows again; else π_b(.|z_t).

    It copies after every token, trigger or not, so off triggers it is worse than the global bigram.

    >>> task = BigramICL(seq_len=8)
    >>> InContextCopy(task)(task.sample(2, seed=0)).shape
    torch.Size([2, 8, 63])
    """

    task: BigramICL

    def __call__(self, prompts: Prompts) -> Float[Tensor, "batch pos vocab"]:
        inputs = _inputs_of(prompts, self.task)
        last, _, _ = followers(inputs, self.task.d_vocab)
        copied = F.one_hot(last.clamp(min=0), self.task.d_vocab).float()
        return _log_floored(
            torch.where((last >= 0)[..., None], copied, _tensor(self.task.stats.bigram, inputs)[inputs])
        )


@dataclass(frozen=True)
class BayesOptimal:
    """Knows the task and sees the whole prompt.

    Let r be the probability that z_t is a trigger, law its law of outputs, and v what followed it n ≥ 1 times before.
    The posterior that it is a trigger is w with odds r law(v) : (1 - r) π_b(v|z_t)^n, and w = 0 if different
    tokens followed; at its first occurrence w = r.
    p = w δ_v + (1 - w) π_b(.|z_t), with law in place of δ_v at the first occurrence.

    Fixed triggers: r is 0 or 1, and this is exact, since the outputs are independent. Random triggers: r is the exact
    probability of being drawn, but tokens are treated as triggers independently of each other, though there are
    exactly K. Against the exact posterior, by enumeration of every prompt of 5 tokens, every trigger draw and all
    outputs (2 random triggers): the expected loss is at most 0.0093 nats above the optimum at every position with a
    vocabulary of 4 tokens, and 0.0058 nats with 6; in single, unlikely prompts a probability is off by up to 0.64.
    Not measured for larger vocabularies, where the draws depend on each other less.

    >>> task = BigramICL(seq_len=8)
    >>> BayesOptimal(task)(task.sample(2, seed=0)).shape
    torch.Size([2, 8, 63])
    """

    task: BigramICL

    def __call__(self, prompts: Prompts) -> Float[Tensor, "batch pos vocab"]:
        inputs = _inputs_of(prompts, self.task)
        size = self.task.d_vocab
        bigram, law = _tensor(self.task.stats.bigram, inputs)[inputs], _tensor(self.task.output_law, inputs)[inputs]
        last, n_seen, same = followers(inputs, size)
        seen = last >= 0
        v = last.clamp(min=0)[..., None]

        rate = _tensor(trigger_probabilities(self.task), inputs).double()[inputs]
        if_trigger = rate * torch.where(same, law.gather(-1, v).squeeze(-1).double(), 0)
        if_not = (1 - rate) * bigram.gather(-1, v).squeeze(-1).double() ** n_seen
        # Both are zero only in a prompt that the task cannot draw; then the prior is as good as anything.
        possible = if_trigger + if_not > 0
        posterior = torch.where(seen & possible, if_trigger / (if_trigger + if_not).clamp(min=1e-300), rate)
        as_trigger = torch.where(seen[..., None], F.one_hot(v.squeeze(-1), size).float(), law)
        return _log_floored(torch.lerp(bigram, as_trigger, posterior.float()[..., None]))


def trigger_probabilities(task: BigramICL) -> Float[np.ndarray, "vocab"]:
    """How likely each token is to be a trigger of a prompt, before anything of it is seen; they sum to n_triggers."""
    if task.trigger_tokens is None:
        return inclusion_probabilities(task.stats.unigram, task.n_triggers)
    return np.isin(np.arange(task.d_vocab), task.trigger_tokens).astype(float)


def over_representation(
    inputs: Int[Tensor, "batch pos"], unigram: Float[Tensor, "vocab"]
) -> Float[Tensor, "batch pos vocab"]:
    """s_v of ``InContextUnigram``: by how many nats the tokens so far favour v's own rate over ``unigram``.

    >>> over_representation(torch.tensor([[0, 0]]), torch.tensor([0.5, 0.5]))
    tensor([[[0.1931, 0.0000],
             [0.3863, 0.0000]]])
    """
    count = F.one_hot(inputs, len(unigram)).float().cumsum(dim=1)
    expected = torch.arange(1, inputs.shape[1] + 1, device=inputs.device)[:, None] * unigram
    evidence = torch.xlogy(count, count / expected) - (count - expected)
    return torch.where(count > expected, evidence.clamp(min=0), 0.0)  # rounding can make it negative


def followers(
    inputs: Int[Tensor, "batch pos"], size: int
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """What followed the current token earlier in the prompt: the last follower (-1: none), how many, all the same.

    >>> last, n_seen, same = followers(torch.tensor([[0, 1, 0, 2, 0]]), size=3)
    >>> last.tolist(), n_seen.tolist(), same.tolist()
    ([[-1, -1, 1, -1, 2]], [[0, 0, 1, 0, 2]], [[True, True, True, True, False]])
    """
    follower = inputs.new_full((inputs.shape[0], size), -1)
    count = torch.zeros_like(follower)
    agree = torch.ones_like(follower, dtype=torch.bool)
    last, n_seen, same = torch.empty_like(inputs), torch.empty_like(inputs), torch.empty_like(inputs, dtype=torch.bool)
    rows = torch.arange(inputs.shape[0], device=inputs.device)
    for pos, token in enumerate(inputs.unbind(dim=1)):
        if pos > 0:
            before = inputs[:, pos - 1]
            known = follower[rows, before]
            agree[rows, before] &= (known == -1) | (known == token)
            follower[rows, before] = token
            count[rows, before] += 1
        last[:, pos], n_seen[:, pos], same[:, pos] = follower[rows, token], count[rows, token], agree[rows, token]
    return last, n_seen, same


def _inputs_of(prompts: Prompts, task: BigramICL) -> Int[Tensor, "batch pos"]:
    if prompts.inputs.is_floating_point() or prompts.vocab not in (None, task.stats.vocab):
        raise InputError("the prompts have another vocabulary than the task: give the predictor the prompts' own task")
    return prompts.inputs


def _parts_of(seed: Seed) -> tuple[int, ...]:
    return seed if isinstance(seed, tuple) else (seed,)


def _tensor(table: np.ndarray, like: Tensor) -> Tensor:
    return torch.tensor(table, dtype=torch.float32, device=like.device)


def _log_floored(probabilities: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch pos vocab"]:
    return ((1 - probabilities.shape[-1] * FLOOR) * probabilities + FLOOR).log()
