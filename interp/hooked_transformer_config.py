"""What a HookedTransformer is made of; field names are TransformerLens' where it has the concept."""

from fnmatch import fnmatchcase
from typing import Literal

from interp.validated import validated
from tasks.errors import InputError

Activation = Literal["relu", "gelu", "gelu_new", "silu"]
MOST_LAYERS_OR_HEADS, LARGEST_SIZE = 10_000, 10**9
"""Far beyond what any machine holds; a mistyped size should be refused and not tried."""
_COUNTS = ("n_layers", "d_model", "n_ctx", "n_heads", "d_head", "d_mlp", "d_vocab", "d_vocab_out", "d_in", "d_out")


@validated
class HookedTransformerConfig:
    """The architecture of a HookedTransformer.

    Fields that TransformerLens' HookedTransformerConfig has keep its names and meaning. The others:

    Attributes:
        d_in: numbers per position, for a model that reads real vectors in place of ``d_vocab`` tokens; the embedding
            is then a linear read-in, ``embed.W_E`` [d_in, d_model] (and ``embed.b_E``).
        d_out: real outputs per position in place of ``d_vocab_out`` logits: ``unembed.W_U`` [d_model, d_out].
        attn_fn: what makes the pattern of the scores: "softmax"; "relu" or "linear", which divide max(score, 0) or the
            score itself by the number of positions that the mask lets through.
        attention_dir: "causal", "bidirectional", or "query_masked": bidirectional, but no position reads the last
            ``n_queries``, the queries themselves included.
        n_queries: positions at the end that no position reads, with "query_masked".
        d_mlp: width of the MLP; None means 4 d_model.
        mlp_type: "mlp" is the usual two-layer one; "linear" is the feed-forward memory W_F of Bietti et al.,
            one matrix [d_model, d_model] without activation or bias.
        mlp_layers: the layers that have a feed-forward part; None means all (with ``attn_only``, none).
        use_biases: whether attention, MLP, LayerNorm's shift aside, and unembedding have biases.
        identity_queries: W_Q is the identity and stays so (one head with d_head = d_model).
        init_mode: "gpt2" draws every weight from N(0, (0.8 / √d_model)²), biases zero; "torch_linear" draws
            embeddings and positions from N(0, 1) and every other matrix from U(±1/√fan_in), PyTorch's default
            for nn.Linear (the published code of Bietti et al.).
        frozen: patterns (``*`` matches anything) of parameters that are never trained, e.g. ``embed.W_E``.
        absent_heads: patterns (``*`` matches anything) of heads that are not there, e.g. ``L1H[1-7]``: their z is zero,
            so that they neither act nor learn. Fewer heads in later layers, and retraining after pruning.
        seed: seed of the initial weights; None where the weights come from elsewhere (converted, or processed as a
            whole), in which case they are zero until they are loaded.
    """

    n_layers: int
    d_model: int
    n_ctx: int
    n_heads: int = 1
    d_head: int | None = None
    d_mlp: int | None = None
    d_vocab: int | None = None
    d_vocab_out: int | None = None
    d_in: int | None = None
    d_out: int | None = None
    act_fn: Activation = "relu"
    attn_only: bool = False
    mlp_type: Literal["mlp", "linear"] = "mlp"
    mlp_layers: tuple[int, ...] | None = None
    parallel_attn_mlp: bool = False
    normalization_type: Literal["LN", "LNPre"] | None = None
    eps: float = 1e-5
    positional_embedding_type: Literal["standard", "none"] = "standard"
    attention_dir: Literal["causal", "bidirectional", "query_masked"] = "causal"
    attn_fn: Literal["softmax", "relu", "linear"] = "softmax"
    n_queries: int = 1
    use_biases: bool = True
    identity_queries: bool = False
    init_mode: Literal["gpt2", "torch_linear"] = "gpt2"
    frozen: tuple[str, ...] = ()
    absent_heads: tuple[str, ...] = ()
    seed: int | None = 0

    def __post_init__(self) -> None:
        self._check_sizes()
        self._fill_in()
        self._check_ends()
        if not 0 < self.eps < float("inf"):
            raise InputError(f"eps = {self.eps}: expected a number above 0")
        for layer in self.mlp_layers or ():
            if not 0 <= layer < self.n_layers:
                raise InputError(f"mlp_layers names layer {layer}: the model has layers 0 to {self.n_layers - 1}")
        for pattern in self.absent_heads:
            if not any(fnmatchcase(head, pattern) for head in self._heads()):
                raise InputError(f"absent_heads: {pattern!r} matches no head: the model has {', '.join(self._heads())}")
        if self.absent_heads and not any(
            self.has_head(layer, head) for layer in range(self.n_layers) for head in range(self.n_heads)
        ):
            raise InputError(f"absent_heads = {list(self.absent_heads)} leaves no head at all: name fewer")
        if self.attn_only and self.mlp_layers:
            raise InputError(f"mlp_layers = {self.mlp_layers} contradicts attn_only = True: drop one of them")
        if self.identity_queries and (self.n_heads != 1 or self.d_head != self.d_model):
            raise InputError(
                f"identity_queries needs one head with d_head = d_model = {self.d_model}: "
                f"this has n_heads = {self.n_heads}, d_head = {self.d_head}"
            )

    def _check_sizes(self) -> None:
        for name in (*_COUNTS, "n_queries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} = {value} must be at least 1")
            largest = MOST_LAYERS_OR_HEADS if name in ("n_layers", "n_heads") else LARGEST_SIZE
            if value is not None and value > largest:
                raise InputError(f"{name} = {value} must be at most {largest}")

    def _fill_in(self) -> None:
        """Defaults that depend on other fields, resolved once so that a saved config says everything."""
        if self.d_head is None:
            if self.d_model % self.n_heads:
                raise InputError(
                    f"d_model = {self.d_model} is no multiple of n_heads = {self.n_heads}: give d_head explicitly"
                )
            self._set("d_head", self.d_model // self.n_heads)
        if self.d_mlp is None:
            self._set("d_mlp", 4 * self.d_model)
        if self.d_vocab_out is None and self.d_out is None:
            self._set("d_vocab_out", self.d_vocab)

    def _check_ends(self) -> None:
        """Refuse a model that reads both tokens and real vectors, writes both, or has query positions unmasked."""
        for tokens, reals in (("d_vocab", "d_in"), ("d_vocab_out", "d_out")):
            if getattr(self, tokens) is not None and getattr(self, reals) is not None:
                raise InputError(
                    f"{tokens} = {getattr(self, tokens)} and {reals} = {getattr(self, reals)} exclude each other: "
                    "drop one of them"
                )
        if self.n_queries != 1 and self.attention_dir != "query_masked":
            raise InputError(
                f"n_queries = {self.n_queries} has no effect with attention_dir = {self.attention_dir!r}: "
                "set attention_dir = 'query_masked'"
            )
        if self.attention_dir == "query_masked" and self.n_queries >= self.n_ctx:
            raise InputError(f"n_queries = {self.n_queries} leaves none of n_ctx = {self.n_ctx} positions to read")

    @property
    def n_outputs(self) -> int:
        """Outputs per position: logits or real numbers.

        Raises:
            InputError: neither was given.
        """
        outputs = self.d_out if self.d_vocab_out is None else self.d_vocab_out
        if outputs is None:
            raise InputError("d_out is missing: say how many numbers the model gives per position (or d_vocab_out)")
        return outputs

    def _set(self, name: str, value: int | None) -> None:
        object.__setattr__(self, name, value)

    def _heads(self) -> list[str]:
        return [f"L{layer}H{head}" for layer in range(self.n_layers) for head in range(self.n_heads)]

    def has_head(self, layer: int, head: int) -> bool:
        """Whether this head is there."""
        return not any(fnmatchcase(f"L{layer}H{head}", pattern) for pattern in self.absent_heads)

    def has_mlp(self, layer: int) -> bool:
        """Whether this layer has a feed-forward part."""
        return not self.attn_only and (self.mlp_layers is None or layer in self.mlp_layers)
