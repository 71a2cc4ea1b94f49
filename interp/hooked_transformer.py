"""HookedTransformer: TransformerLens' model, rebuilt on its permanent hook infrastructure, that fails loudly."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import ActivationCache, FactoredMatrix, HookedRootModule
from transformer_lens.hook_points import HookPoint

from interp.components import Block, Embed, LayerNorm, PosEmbed, ReadIn, Unembed, shown, watched
from interp.hook_gate import GuardedHook, HookFunction, Name, matching_points, refuse_unfired
from interp.hooked_transformer_config import HookedTransformerConfig
from interp.hub import SharedModel
from interp.initialisation import freeze, initialise
from tasks.errors import InputError

# Points that cost memory: computed only when something names them, so "cache everything" leaves them out.
_COSTLY = ("hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")
_TOKENIZER_HELPERS = ("to_tokens", "to_string", "to_str_tokens", "to_single_token", "tokenizer", "generate")


class HookedTransformer(SharedModel, HookedRootModule):
    """A transformer with a hook point at every activation; parameters and hooks as in TransformerLens 3.

    It differs from TransformerLens' class where that was silent: an unknown hook name, a filter that matches
    nothing, an edit of another shape and a hook that never fires raise InputError. Points that cost memory
    (``hook_result``, ``hook_q_input`` …) need no switch: they are computed when something names them.

    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=4, d_vocab=5, attn_only=True))
    >>> logits, cache = model.run_with_cache(torch.tensor([[0, 1, 2]]))
    >>> logits.shape, cache["pattern", 1].shape
    (torch.Size([1, 3, 5]), torch.Size([1, 1, 3, 3]))
    """

    blocks: Sequence[Block]  # an nn.ModuleList, which type checkers take for one of any modules

    def __init__(self, cfg: HookedTransformerConfig):
        super().__init__()
        if cfg.d_vocab is None and cfg.d_in is None:
            raise InputError("d_vocab is missing: say how many tokens the model reads (or d_in, for real vectors)")
        self.cfg = cfg
        self.embed = Embed(cfg) if cfg.d_in is None else ReadIn(cfg)
        self.hook_embed = HookPoint()  # [batch, pos, d_model]
        self.has_positions = cfg.positional_embedding_type == "standard"
        if self.has_positions:
            self.pos_embed = PosEmbed(cfg)
            self.hook_pos_embed = HookPoint()  # [batch, pos, d_model]
        self.blocks = cast("Sequence[Block]", nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers)))
        self.ln_final = LayerNorm(cfg) if cfg.normalization_type is not None else nn.Identity()
        self.unembed = Unembed(cfg)
        self.setup()
        initialise(self, cfg)
        freeze(self, cfg)

    def forward(
        self,
        inputs: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_in"],
        return_type: Literal["logits", "loss"] = "logits",
        *,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
    ) -> Float[Tensor, "batch pos d_out"] | Float[Tensor, ""]:
        """Logits [batch, pos, d_vocab_out], or the mean next-token cross-entropy in nats (``"loss"``).

        A model with ``d_in`` reads real vectors [batch, pos, d_in]; one with ``d_out`` gives [batch, pos, d_out].
        With ``start_at_layer`` the inputs are the residual stream before that layer; with ``stop_at_layer`` the
        output is the residual stream before that layer (negative layers count from the end).

        Raises:
            InputError: a token or position outside the model, a layer out of range, a loss asked of a part.
        """
        if return_type not in ("logits", "loss"):
            raise InputError(f"return_type = {return_type!r} is unknown: choose 'logits' or 'loss'")
        if return_type == "loss" and (start_at_layer is not None or stop_at_layer is not None):
            raise InputError("return_type = 'loss' needs the whole model: drop start_at_layer and stop_at_layer")
        if return_type == "loss" and (self.cfg.d_in is not None or self.cfg.d_out is not None):
            raise InputError("return_type = 'loss' needs tokens in and out: with real values use prompts.loss(outputs)")
        first, end = self._layer_span(start_at_layer, stop_at_layer)
        resid = self._embedded(inputs) if start_at_layer is None else self._checked_residual(inputs)
        for block in self.blocks[first:end]:
            resid = block(resid)
        if stop_at_layer is not None:
            return resid
        logits = self.unembed(self.ln_final(resid))
        if return_type == "loss":
            if inputs.shape[1] < 2:
                raise InputError("return_type = 'loss' needs 2 positions or more: a single one has no next token")
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs[:, 1:].flatten())
        return logits

    def _embedded(
        self, inputs: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_in"]
    ) -> Float[Tensor, "batch pos d_model"]:
        self._check_inputs(inputs)
        resid = shown(self.hook_embed, self.embed(inputs))
        if self.has_positions:
            positions = self.pos_embed(inputs.shape[1], inputs.shape[0])
            if watched(self.hook_pos_embed):
                positions = self.hook_pos_embed(positions.clone())  # an edit in place must not reach W_pos
            resid = resid + positions
        return resid

    def _check_inputs(self, inputs: Tensor) -> None:
        d_in, d_vocab = self.cfg.d_in, self.cfg.d_vocab
        expected = "integer tokens [batch, pos]" if d_in is None else f"real vectors [batch, pos, {d_in}]"
        if not isinstance(inputs, Tensor):
            raise InputError(f"inputs are {type(inputs).__name__}: this model has no tokenizer, give {expected}")
        fits = not inputs.is_floating_point() and inputs.ndim == 2
        if d_in is not None:
            fits = inputs.is_floating_point() and inputs.ndim == 3 and inputs.shape[-1] == d_in
        if not fits:
            raise InputError(f"inputs are {inputs.dtype} {list(inputs.shape)}: give {expected}")
        if d_in is not None:
            self._check_dtype(inputs)
        n_pos = inputs.shape[1]
        if self.has_positions and n_pos > self.cfg.n_ctx:
            raise InputError(f"the prompts have {n_pos} positions but the model has n_ctx = {self.cfg.n_ctx}")
        self._check_something_to_read(n_pos)
        if d_vocab is not None and inputs.device.type == "cpu" and inputs.numel():  # the look would stall a GPU
            low, high = int(inputs.min()), int(inputs.max())
            if low < 0 or high >= d_vocab:
                raise InputError(f"token {low if low < 0 else high} does not exist: d_vocab = {d_vocab}")

    def _checked_residual(self, resid: Tensor) -> Float[Tensor, "batch pos d_model"]:
        if resid.ndim != 3 or resid.shape[-1] != self.cfg.d_model or not resid.is_floating_point():
            raise InputError(
                f"inputs are {resid.dtype} {list(resid.shape)}: with start_at_layer give the residual stream "
                f"[batch, pos, {self.cfg.d_model}]"
            )
        self._check_dtype(resid)
        self._check_something_to_read(resid.shape[1])
        return resid

    def _check_dtype(self, reals: Tensor) -> None:
        own = self.unembed.W_U.dtype
        if reals.dtype != own and not torch.is_autocast_enabled(reals.device.type):
            raise InputError(f"inputs are {reals.dtype} but the weights {own}: give inputs.to({own})")

    def _check_something_to_read(self, n_pos: int) -> None:
        if self.cfg.attention_dir == "query_masked" and n_pos <= self.cfg.n_queries:
            raise InputError(
                f"the prompts have {n_pos} positions, of which n_queries = {self.cfg.n_queries} are read by none: "
                "give longer prompts"
            )

    def _layer_span(self, start: int | None, stop: int | None) -> tuple[int, int]:
        n_layers = self.cfg.n_layers
        for name, layer in (("start_at_layer", start), ("stop_at_layer", stop)):
            if layer is not None and not -n_layers <= layer <= n_layers:
                raise InputError(f"{name} = {layer} does not exist: the model has {n_layers} layers")
        first, end = (
            default if layer is None else layer + n_layers * (layer < 0)
            for layer, default in ((start, 0), (stop, n_layers))
        )
        if first > end:
            raise InputError(f"start_at_layer = {start} lies behind stop_at_layer = {stop}")
        return first, end

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[tuple[Name, HookFunction]] = (),
        bwd_hooks: Sequence[tuple[Name, HookFunction]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Self]:
        """Attach hooks for the length of a with-block: the single gate, which ``run_with_hooks`` passes too.

        Raises:
            InputError: a name that does not exist, a filter that matches nothing, an edit that is none (see
                GuardedHook), or, at the end, a hook that never fired.
        """
        guarded: dict[Literal["fwd", "bwd"], list[GuardedHook]] = {
            "fwd": self._guarded(fwd_hooks, "fwd"),
            "bwd": self._guarded(bwd_hooks, "bwd"),
        }
        with super().hooks(
            [(hook.point, hook) for hook in guarded["fwd"]],
            [(hook.point, hook) for hook in guarded["bwd"]],
            reset_hooks_end,
            clear_contexts,
        ):
            yield self
        if reset_hooks_end:
            refuse_unfired(guarded["fwd"] + guarded["bwd"])

    def add_hook(
        self,
        name: Name,
        hook: HookFunction,
        dir: Literal["fwd", "bwd"] = "fwd",  # noqa: A002 — TransformerLens' name
        **options: Any,
    ) -> None:
        """Attach a hook until ``reset_hooks``; checked like those of ``hooks``, but for firing."""
        for guarded in self._guarded([(name, hook)], dir):
            super().add_hook(guarded.point, guarded, dir=dir, **options)

    def _guarded(
        self, hooks: Sequence[tuple[Name, HookFunction]], direction: Literal["fwd", "bwd"]
    ) -> list[GuardedHook]:
        return [
            GuardedHook(point, function, direction)
            for name, function in hooks
            for point in matching_points(self.hook_dict, name)
        ]

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: Name | Sequence[str] | None = None,
        remove_batch_dim: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, ActivationCache]:
        """The output and a TransformerLens ActivationCache.

        ``names_filter`` is a name, a list of names or a filter on names. None caches every point that the pass
        reaches, but for those that cost memory (``hook_result``, ``hook_q_input`` …): name those.
        """
        reached = self._reached(kwargs.get("start_at_layer"), kwargs.get("stop_at_layer"))
        if names_filter is None:
            names = [point for point in reached if not point.endswith(_COSTLY)]
        elif isinstance(names_filter, Sequence) and not isinstance(names_filter, str):
            names = [point for name in names_filter for point in matching_points(self.hook_dict, name)]
        else:
            names = matching_points(self.hook_dict if isinstance(names_filter, str) else reached, names_filter)
        output, cache = super().run_with_cache(
            *model_args, names_filter=names, remove_batch_dim=remove_batch_dim, **kwargs
        )
        return output, ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)

    def _reached(self, start: int | None, stop: int | None) -> list[str]:
        first, end = self._layer_span(start, stop)

        def reached(point: str) -> bool:
            part, _, rest = point.partition(".")
            if part == "blocks":
                return first <= int(rest.partition(".")[0]) < end
            return start is None if part in ("hook_embed", "hook_pos_embed") else stop is None

        return [point for point in self.hook_dict if reached(point)]

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load weights; a missing, extra or misshapen tensor raises InputError that names the first of them."""
        own = self.state_dict()
        if strict:
            for problem, names in (
                ("lacks", own.keys() - state_dict.keys()),
                ("has", state_dict.keys() - own.keys()),
            ):
                if names:
                    what = "which the model needs" if problem == "lacks" else "which the model does not have"
                    raise InputError(f"the state {problem} {min(names)}, {what}: it belongs to another architecture")
        for name in own.keys() & state_dict.keys():
            if own[name].shape != state_dict[name].shape:
                raise InputError(
                    f"{name} has shape {list(state_dict[name].shape)}, the model's is {list(own[name].shape)}"
                )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def __getattr__(self, name: str) -> Any:
        if name in _TOKENIZER_HELPERS:
            raise AttributeError(
                f"{name} needs a tokenizer and this model has none: pass tokens, and decode with Prompts"
            )
        return super().__getattr__(name)

    def tokens_to_residual_directions(self, tokens: Int[Tensor, "*batch"] | int) -> Float[Tensor, "*batch d_model"]:
        """The unembedding directions of tokens; ActivationCache.logit_attrs asks for them."""
        return self.unembed.W_U.T[tokens]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, "d_model"]:
        """Sum of the output biases of all layers before ``layer`` (and its attention, with ``mlp_input``)."""
        total = torch.zeros_like(self.unembed.W_U[:, 0])
        for index in range(layer + mlp_input):
            block = self.blocks[index]
            if block.attn.b_O is not None:
                total = total + block.attn.b_O
            b_out = getattr(block.mlp, "b_out", None) if block.has_mlp else None
            if include_mlp_biases and index < layer and b_out is not None:
                total = total + b_out
        return total

    def _stacked(self, name: str) -> Float[Tensor, "layer *shape"]:
        return torch.stack([getattr(block.attn, name) for block in self.blocks])

    @property
    def W_E(self) -> Float[Tensor, "d_vocab_or_d_in d_model"]:
        """Embedding of tokens, or read-in of real vectors."""
        return self.embed.W_E

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Position embedding."""
        return self.pos_embed.W_pos

    @property
    def W_U(self) -> Float[Tensor, "d_model n_outputs"]:
        """Unembedding, or read-out."""
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, "n_outputs"] | None:
        """Unembedding bias, or None without biases."""
        return self.unembed.b_U

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query weights of every head."""
        return self._stacked("W_Q")

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Key weights of every head."""
        return self._stacked("W_K")

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Value weights of every head."""
        return self._stacked("W_V")

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Output weights of every head."""
        return self._stacked("W_O")

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"] | None:
        """Output bias of every attention layer, or None without biases."""
        return self._stacked("b_O") if self.cfg.use_biases else None

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head, [layer, head, d_model, d_model]."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ of every head, [layer, head, d_model, d_model]."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))
