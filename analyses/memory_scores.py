"""What associative memories answer: the score of every key (or token) for every query, and the ideal memories.

Pure functions of weights, in our orientation: a residual is a row x, queries are x W_Q, keys x W_K, values x W_V,
and a head writes z W_O. The paper (Bietti et al. 2023, section 4) writes the same with column vectors: its W_K1,
W_K2, W_V2, W_O2 and W_F are the transposes of these, and its w_E(v), p_t, w_U(v) are the rows W_E[v], W_pos[t] and
the column W_U[:, v].
"""

import torch
from jaxtyping import Float
from torch import Tensor

SMOOTHING = 1e-3
"""Share of the uniform distribution mixed into π_b before its logarithm is taken (ours: log 0 cannot be stored)."""


def copying_scores(
    W_E: Float[Tensor, "token d_model"],
    W_V: Float[Tensor, "d_model d_head"],
    W_O: Float[Tensor, "d_head d_model"],
    W_U: Float[Tensor, "d_model candidate"],
) -> Float[Tensor, "token candidate"]:
    """How much a head that attends to token v raises the logit of token j: w_E(v) W_V W_O w_U(j).

    The paper's w_U(j)ᵀ W_O2 W_V2 w_E(v). A copying head is highest at j = v.
    """
    return W_E @ W_V @ W_O @ W_U


def previous_token_scores(
    W_pos: Float[Tensor, "pos d_model"],
    W_Q: Float[Tensor, "d_model d_head"],
    W_K: Float[Tensor, "d_model d_head"],
) -> Float[Tensor, "dest src"]:
    """How well position t = 1 … T − 1 (row t − 1) likes position s = 0 … T − 2 (column s): p_t W_Q · p_s W_K.

    The paper's p_tᵀ W_K1 p_s, where W_Q is the identity. Not divided by √d_head, and nothing is masked: s runs over
    all positions. A previous-token head is highest at s = t − 1, the diagonal.
    """
    return (W_pos[1:] @ W_Q) @ (W_pos[:-1] @ W_K).T


def written_by(
    W_E: Float[Tensor, "token d_model"],
    W_V: Float[Tensor, "d_model d_head"],
    W_O: Float[Tensor, "d_head d_model"],
) -> Float[Tensor, "token d_model"]:
    """What a head writes where it attends to token v: w_E(v) W_V W_O, the paper's w_1(v) = W_O1 W_V1 w_E(v)."""
    return W_E @ W_V @ W_O


def match_scores(
    queries: Float[Tensor, "query d_model"],
    W_Q: Float[Tensor, "d_model d_head"],
    W_K: Float[Tensor, "d_model d_head"],
    keys: Float[Tensor, "key d_model"],
) -> Float[Tensor, "query key"]:
    """How well residual k likes residual v: k W_Q · v W_K.

    With queries w_E(k) and keys w_1(v) the paper's w_E(k)ᵀ W_K2 w_1(v): an induction head is highest at v = k.
    """
    return (queries @ W_Q) @ (keys @ W_K).T


def feed_forward_logits(
    W_E: Float[Tensor, "token d_model"],
    W_F: Float[Tensor, "d_model d_model"],
    W_U: Float[Tensor, "d_model candidate"],
) -> Float[Tensor, "token candidate"]:
    """The logits that the linear feed-forward part adds after token v: w_E(v) W_F w_U(j)."""
    return W_E @ W_F @ W_U


def ideal_memory(read: Float[Tensor, "pair d_in"], written: Float[Tensor, "pair d_out"]) -> Float[Tensor, "d_in d_out"]:
    """The matrix that stores pairs: M = Σ_i read_iᵀ written_i, so that read_i M ≈ written_i.

    =======  ====================  ==================
    memory   read                  written
    =======  ====================  ==================
    W_K1     p_{t−1}               p_t W_Q
    W_K2     w_1(k)                w_E(k) W_Q
    W_O2     w_E(v) W_V2           w_U(v)
    W_F      w_E(v)                Σ_j log π_b(j|v) w_U(j)
    =======  ====================  ==================

    >>> ideal_memory(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([[0., 2.],
            [0., 0.]])
    """
    return read.T @ written


def log_bigram_directions(
    bigram: Float[Tensor, "token candidate"], W_U: Float[Tensor, "d_model candidate"]
) -> Float[Tensor, "token d_model"]:
    """Σ_j log π_b(j|v) w_U(j) per token v, the direction that raises every logit by its log-probability.

    π_b is smoothed by ``SMOOTHING`` and each row of logarithms is centred, since a softmax sees no constant.
    """
    logarithms = ((1 - SMOOTHING) * bigram + SMOOTHING / bigram.shape[1]).log()
    return (logarithms - logarithms.mean(dim=1, keepdim=True)) @ W_U.T


def kl_table(
    bigram: Float[Tensor, "token candidate"], logits: Float[Tensor, "other candidate"]
) -> Float[Tensor, "token other"]:
    """KL(π_b(.|v) ‖ softmax(logits of v')) in nats, for every pair of tokens v and v'.

    The diagonal is the paper's W_F probe; the rest says what it would be for labels dealt at random.

    >>> kl_table(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([[0.6931]])
    """
    negative_entropy = torch.special.xlogy(bigram, bigram).sum(dim=1)
    return negative_entropy[:, None] - bigram @ logits.log_softmax(dim=1).T
