"""The parts of a HookedTransformer, with TransformerLens' parameter and hook names."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens import FactoredMatrix
from transformer_lens.hook_points import HookPoint

from interp.hooked_transformer_config import HookedTransformerConfig
from interp.short_attention import short_attention, suits_short_attention

_ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda pre: F.gelu(pre, approximate="tanh"),
    "silu": F.silu,
}


def watched(point: HookPoint) -> bool:
    """Whether anything is attached to a hook point."""
    return bool(point._forward_hooks or point._backward_hooks or point._forward_pre_hooks or point._backward_pre_hooks)


def shown(point: HookPoint, tensor: Tensor) -> Tensor:
    """The tensor, after whoever watches this point has seen (and perhaps edited) it; free when nobody does."""
    return point(tensor) if watched(point) else tensor


def parameter(*shape: int) -> nn.Parameter:
    """A parameter yet to be initialised."""
    return nn.Parameter(torch.empty(*shape))


class Embed(nn.Module):
    """Token embedding: one row of W_E [d_vocab, d_model] per token."""

    def __init__(self, cfg: HookedTransformerConfig):
        super().__init__()
        assert cfg.d_vocab is not None
        self.W_E = parameter(cfg.d_vocab, cfg.d_model)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return F.embedding(tokens, self.W_E)


class ReadIn(nn.Module):
    """Real vectors into the residual stream: x W_E + b_E, with W_E [d_in, d_model]."""

    def __init__(self, cfg: HookedTransformerConfig):
        super().__init__()
        assert cfg.d_in is not None
        self.W_E = parameter(cfg.d_in, cfg.d_model)
        self.b_E = parameter(cfg.d_model) if cfg.use_biases else None

    def forward(self, vectors: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_model"]:
        return F.linear(vectors, self.W_E.T, self.b_E)


class PosEmbed(nn.Module):
    """Absolute position embedding: row t of W_pos [n_ctx, d_model] at position t of every prompt."""

    def __init__(self, cfg: HookedTransformerConfig):
        super().__init__()
        self.W_pos = parameter(cfg.n_ctx, cfg.d_model)

    def forward(self, n_pos: int, batch: int) -> Float[Tensor, "batch pos d_model"]:
        return self.W_pos[:n_pos].expand(batch, -1, -1)


class LayerNorm(nn.Module):
    """LayerNorm over d_model: centre, divide by hook_scale, then (type "LN") scale by w and shift by b."""

    def __init__(self, cfg: HookedTransformerConfig):
        super().__init__()
        self.eps = cfg.eps
        affine = cfg.normalization_type == "LN"
        self.w = parameter(cfg.d_model) if affine else None
        self.b = parameter(cfg.d_model) if affine else None
        self.hook_scale = HookPoint()  # [..., 1]
        self.hook_normalized = HookPoint()  # [..., d_model], before gain and shift

    def forward(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        if not watched(self.hook_scale) and not watched(self.hook_normalized):
            return F.layer_norm(resid, resid.shape[-1:], self.w, self.b, self.eps)
        centred = resid - resid.mean(dim=-1, keepdim=True)
        scale = shown(self.hook_scale, (centred.square().mean(dim=-1, keepdim=True) + self.eps).sqrt())
        normalized = shown(self.hook_normalized, centred / scale)
        return normalized if self.w is None or self.b is None else normalized * self.w + self.b


class Attention(nn.Module):
    """Multi-head attention, softmax, ReLU or linear (``cfg.attn_fn``); scores divided by √d_head.

    Parameters: W_Q, W_K, W_V [head, d_model, d_head], W_O [head, d_head, d_model] and, with biases, b_Q, b_K,
    b_V [head, d_head], b_O [d_model]. Scores and pattern are written out only when someone watches them;
    otherwise PyTorch's fused attention gives z directly.
    """

    present: Tensor | None
    """1 for every head that is there and 0 for the others, [head, 1]; None if all are."""

    def __init__(self, cfg: HookedTransformerConfig, layer: int):
        super().__init__()
        assert cfg.d_head is not None
        self.cfg = cfg
        present = torch.tensor([[float(cfg.has_head(layer, head))] for head in range(cfg.n_heads)])
        self.register_buffer("present", None if present.all() else present, persistent=False)
        self.W_Q = parameter(cfg.n_heads, cfg.d_model, cfg.d_head)
        self.W_K = parameter(cfg.n_heads, cfg.d_model, cfg.d_head)
        self.W_V = parameter(cfg.n_heads, cfg.d_model, cfg.d_head)
        self.W_O = parameter(cfg.n_heads, cfg.d_head, cfg.d_model)
        bias = cfg.use_biases
        self.b_Q = parameter(cfg.n_heads, cfg.d_head) if bias and not cfg.identity_queries else None
        self.b_K = parameter(cfg.n_heads, cfg.d_head) if bias else None
        self.b_V = parameter(cfg.n_heads, cfg.d_head) if bias else None
        self.b_O = parameter(cfg.d_model) if bias else None
        self.hook_q = HookPoint()  # [batch, pos, head, d_head]
        self.hook_k = HookPoint()  # [batch, pos, head, d_head]
        self.hook_v = HookPoint()  # [batch, pos, head, d_head]
        self.hook_attn_scores = HookPoint()  # [batch, head, dest, src], masked entries -inf (0 without softmax)
        self.hook_pattern = HookPoint()  # [batch, head, dest, src]
        self.hook_z = HookPoint()  # [batch, pos, head, d_head]
        self.hook_result = HookPoint()  # [batch, pos, head, d_model]

    def forward(
        self,
        query_input: Float[Tensor, "batch pos *query_heads d_model"],
        key_input: Float[Tensor, "batch pos *key_heads d_model"],
        value_input: Float[Tensor, "batch pos *value_heads d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        return self.written(self.mixed(query_input, key_input, value_input))

    def mixed(
        self,
        query_input: Float[Tensor, "batch pos *query_heads d_model"],
        key_input: Float[Tensor, "batch pos *key_heads d_model"],
        value_input: Float[Tensor, "batch pos *value_heads d_model"],
    ) -> Float[Tensor, "batch pos head d_head"]:
        """z: the values that each head has mixed by its pattern."""
        if query_input is key_input is value_input and self._project_alike():
            together = self._projected_together(query_input)
            if self._nothing_before_z_is_watched() and self._is_short(together):
                return self._shown_z(short_attention(together))
            # Parts of one tensor: an edit in place at one hook must be free to happen and must not reach the others.
            q, k, v = (
                part.clone() if watched(point) else part
                for part, point in zip(together.unbind(2), (self.hook_q, self.hook_k, self.hook_v), strict=True)
            )
        else:
            q = self._queries(query_input)
            k = _per_head(key_input, self.W_K, self.b_K)
            v = _per_head(value_input, self.W_V, self.b_V)
        q, k, v = shown(self.hook_q, q), shown(self.hook_k, k), shown(self.hook_v, v)
        if watched(self.hook_attn_scores) or watched(self.hook_pattern):
            z = self._written_out(q, k, v)
        else:
            z = self._fused(q, k, v)
        return self._shown_z(z)

    def _shown_z(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        return shown(self.hook_z, z if self.present is None else z * self.present)

    def written(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        """What all heads together add to the residual stream."""
        if watched(self.hook_result):
            out = self.hook_result(torch.einsum("bphd,hdm->bphm", z, self.W_O)).sum(dim=2)
            return out if self.b_O is None else out + self.b_O
        return F.linear(z.flatten(2), self.W_O.flatten(0, 1).T, self.b_O)

    def _project_alike(self) -> bool:
        # A frozen matrix has no gradient to compute, which one product for all three would compute all the same.
        trained = {weight.requires_grad for weight in (self.W_Q, self.W_K, self.W_V)}
        return not self.cfg.identity_queries and (len(trained) == 1 or not torch.is_grad_enabled())

    def _nothing_before_z_is_watched(self) -> bool:
        points = (self.hook_q, self.hook_k, self.hook_v, self.hook_attn_scores, self.hook_pattern)
        return not any(watched(point) for point in points)

    def _is_short(self, together: Float[Tensor, "batch pos 3 head d_head"]) -> bool:
        causal_softmax = self.cfg.attn_fn == "softmax" and self.cfg.attention_dir == "causal"
        return causal_softmax and suits_short_attention(together)

    def _projected_together(
        self, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos 3 head d_head"]:
        """Queries, keys and values from one product."""
        weight = torch.cat([weight.transpose(0, 1).flatten(1) for weight in (self.W_Q, self.W_K, self.W_V)], dim=1)
        bias = None
        if self.b_Q is not None and self.b_K is not None and self.b_V is not None:
            bias = torch.cat([self.b_Q.flatten(), self.b_K.flatten(), self.b_V.flatten()])
        return F.linear(resid, weight.T, bias).unflatten(-1, (3, self.cfg.n_heads, -1))

    def _queries(self, query_input: Float[Tensor, "batch pos *heads d_model"]) -> Tensor:
        if self.cfg.identity_queries and query_input.ndim == 3 and self._identity_is_intact():
            q = query_input.unsqueeze(2)
            return q.clone() if watched(self.hook_q) else q  # an edit in place must not reach the residual
        return _per_head(query_input, self.W_Q, self.b_Q)

    def _identity_is_intact(self) -> bool:
        # A product with the identity is skipped; a look at the matrix keeps that right even if someone wrote to W_Q.
        # On an accelerator the look would make the device wait, so there the product is made.
        W_Q = self.W_Q[0]
        return W_Q.device.type == "cpu" and torch.equal(W_Q, torch.eye(W_Q.shape[0], dtype=W_Q.dtype))

    def _written_out(self, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "batch pos head d_head"]:
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        hidden = self._hidden(scores.shape[-1], scores.device)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf if self.cfg.attn_fn == "softmax" else 0.0)
        scores = shown(self.hook_attn_scores, scores)
        if self.cfg.attn_fn == "softmax":
            pattern = scores.softmax(dim=-1)
        else:
            kept = scores.relu() if self.cfg.attn_fn == "relu" else scores
            pattern = kept / self._n_visible(scores.shape[-1], scores)[:, None]
        return torch.einsum("bhqk,bkhd->bqhd", shown(self.hook_pattern, pattern), v)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "batch pos head d_head"]:
        """z without the pattern: for the direction and the kind of attention, the cheapest way there is."""
        if self.cfg.attn_fn == "relu" or (self.cfg.attn_fn == "linear" and self.cfg.attention_dir == "causal"):
            return self._written_out(q, k, v)
        n_pos = k.shape[1]
        if self.cfg.attention_dir == "query_masked":
            k, v = k[:, : n_pos - self.cfg.n_queries], v[:, : n_pos - self.cfg.n_queries]
        if self.cfg.attn_fn == "linear":
            # (q kᵀ) v = q (kᵀ v): one d_head × d_head matrix per prompt and head, whatever the length.
            memory = torch.einsum("bkhd,bkhe->bhde", k, v) / (math.sqrt(q.shape[-1]) * k.shape[1])
            return torch.einsum("bqhd,bhde->bqhe", q, memory)
        z = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=self.cfg.attention_dir == "causal",
        )
        return z.transpose(1, 2)

    def _hidden(self, n_pos: int, device: torch.device) -> Bool[Tensor, "dest src"] | None:
        """Which positions a position must not read; None where it reads all."""
        if self.cfg.attention_dir == "bidirectional":
            return None
        if self.cfg.attention_dir == "causal":
            return torch.ones(n_pos, n_pos, dtype=torch.bool, device=device).triu(1)
        return (torch.arange(n_pos, device=device) >= n_pos - self.cfg.n_queries).expand(n_pos, -1)

    def _n_visible(self, n_pos: int, like: Tensor) -> Float[Tensor, "dest"]:
        """How many positions each position reads."""
        hidden = self._hidden(n_pos, like.device)
        if hidden is None:
            return like.new_full((n_pos,), n_pos)
        return (~hidden).sum(dim=-1).to(like.dtype)

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O per head: what reading a position writes, [head, d_model, d_model]."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ per head: which pairs of positions attend, [head, d_model, d_model]."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))


def _per_head(
    resid: Float[Tensor, "batch pos *heads d_model"],
    weight: Float[Tensor, "head d_model d_head"],
    bias: Float[Tensor, "head d_head"] | None,
) -> Float[Tensor, "batch pos head d_head"]:
    if resid.ndim == 4:  # each head reads its own copy of the residual
        projected = torch.einsum("bphm,hmd->bphd", resid, weight)
    else:
        flat = weight.transpose(0, 1).flatten(1)  # [d_model, head · d_head]: one product for all heads
        return F.linear(resid, flat.T, None if bias is None else bias.flatten()).unflatten(-1, (weight.shape[0], -1))
    return projected if bias is None else projected + bias


class MLP(nn.Module):
    """act(x W_in + b_in) W_out + b_out."""

    def __init__(self, cfg: HookedTransformerConfig):
        super().__init__()
        assert cfg.d_mlp is not None
        self.act = _ACTIVATIONS[cfg.act_fn]
        self.W_in = parameter(cfg.d_model, cfg.d_mlp)
        self.b_in = parameter(cfg.d_mlp) if cfg.use_biases else None
        self.W_out = parameter(cfg.d_mlp, cfg.d_model)
        self.b_out = parameter(cfg.d_model) if cfg.use_biases else None
        self.hook_pre = HookPoint()  # [batch, pos, d_mlp]
        self.hook_post = HookPoint()  # [batch, pos, d_mlp]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        pre = shown(self.hook_pre, F.linear(x, self.W_in.T, self.b_in))
        post = shown(self.hook_post, self.act(pre))
        return F.linear(post, self.W_out.T, self.b_out)


class LinearMemory(nn.Module):
    """The linear feed-forward part x W_F: an associative memory of global bigrams (Bietti et al., section 5)."""

    def __init__(self, cfg: HookedTransformerConfig):
        super().__init__()
        self.W_F = parameter(cfg.d_model, cfg.d_model)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return x @ self.W_F


class Block(nn.Module):
    """One layer: attention, then (or, with parallel_attn_mlp, beside it) the feed-forward part."""

    def __init__(self, cfg: HookedTransformerConfig, layer: int):
        super().__init__()
        self.cfg = cfg
        normalized = cfg.normalization_type is not None
        self.ln1 = LayerNorm(cfg) if normalized else nn.Identity()
        self.attn = Attention(cfg, layer)
        self.hook_resid_pre = HookPoint()  # [batch, pos, d_model]
        self.hook_q_input = HookPoint()  # [batch, pos, head, d_model]
        self.hook_k_input = HookPoint()  # [batch, pos, head, d_model]
        self.hook_v_input = HookPoint()  # [batch, pos, head, d_model]
        self.hook_attn_out = HookPoint()  # [batch, pos, d_model]
        self.hook_resid_post = HookPoint()  # [batch, pos, d_model]
        self.has_mlp = cfg.has_mlp(layer)
        if self.has_mlp:
            self.ln2 = LayerNorm(cfg) if normalized else nn.Identity()
            self.mlp = MLP(cfg) if cfg.mlp_type == "mlp" else LinearMemory(cfg)
            self.hook_mlp_in = HookPoint()  # [batch, pos, d_model]
            self.hook_mlp_out = HookPoint()  # [batch, pos, d_model]
            if not cfg.parallel_attn_mlp:
                self.hook_resid_mid = HookPoint()  # [batch, pos, d_model]

    def forward(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        resid_pre = shown(self.hook_resid_pre, resid)
        return self.after_attention(resid_pre, self.attn(*self.attention_inputs(resid_pre)))

    def after_attention(
        self, resid_pre: Float[Tensor, "batch pos d_model"], attn_out: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream behind the layer, given what its attention adds."""
        resid_mid = resid_pre + shown(self.hook_attn_out, attn_out)
        if not self.has_mlp:
            return shown(self.hook_resid_post, resid_mid)
        if self.cfg.parallel_attn_mlp:
            mlp_in = resid_pre
        else:
            resid_mid = mlp_in = shown(self.hook_resid_mid, resid_mid)
        if watched(self.hook_mlp_in):
            mlp_in = self.hook_mlp_in(mlp_in.clone())  # an edit in place must not reach the residual
        mlp_out = shown(self.hook_mlp_out, self.mlp(self.ln2(mlp_in)))
        return shown(self.hook_resid_post, resid_mid + mlp_out)

    def attention_inputs(self, resid_pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The inputs of queries, keys and values; a watched one gets an own copy of the residual for every head."""
        normalized = self.ln1(resid_pre)

        def read(point: HookPoint) -> Tensor:
            if not watched(point):
                return normalized
            copies = resid_pre.unsqueeze(2).repeat(1, 1, self.cfg.n_heads, 1)
            return self.ln1(point(copies))

        return read(self.hook_q_input), read(self.hook_k_input), read(self.hook_v_input)


class Unembed(nn.Module):
    """resid W_U + b_U: logits [batch, pos, d_vocab_out], or real outputs [batch, pos, d_out]."""

    def __init__(self, cfg: HookedTransformerConfig):
        super().__init__()
        self.W_U = parameter(cfg.d_model, cfg.n_outputs)
        self.b_U = parameter(cfg.n_outputs) if cfg.use_biases else None

    def forward(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos n_outputs"]:
        return F.linear(resid, self.W_U.T, self.b_U)
