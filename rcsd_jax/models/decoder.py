"""One decoder for Qwen3 (dense), Qwen2.5 and Llama 3, layers stacked and scanned.

A Linen module, because Linen's variable collections are exactly the split that self-distillation needs: `params`
(frozen or trained), `lora` (adapters; leave the collection out and they are off), and nothing hidden.
`Decoder(config).apply` is a pure function of plain nested dicts, so teacher and student are two calls of it.

Every parameter is declared once, in `declarations`: initialisation, abstract shapes, sharding, Hugging Face names and
LoRA targets all derive from that table (the idea is jax-ml/jax-llm-examples').
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from rcsd_jax.models import matrices
from rcsd_jax.models.attention import causal_attention, segment_mask
from rcsd_jax.models.decode_attention import KVCache, decode_attention, write
from rcsd_jax.models.sharding import LAYOUTS, automatic, constrain


class Llama3Rope(NamedTuple):
    """Llama 3's RoPE scaling: low frequencies divided by `factor`, high ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Static description of a decoder; hashable, so that `Decoder(config)` can be a static argument of jit."""

    family: str  # "qwen3", "qwen2" or "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rope_scaling: Llama3Rope | None = None
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = True
    max_position: int = 40960
    dtype: Any = jnp.float32  # of activations
    param_dtype: Any = jnp.float32
    remat: str = "none"  # what the backward pass recomputes: a key of `REMAT`
    kernels: str = "xla"  # of attention: one of `attention.KERNELS`
    layout: str = "train"  # where weights and activations lie on a mesh: a key of `sharding.LAYOUTS`
    lora_scale: float = 1.0  # alpha / rank

    @property
    def unrolled(self) -> bool:
        """Whether layers are unrolled instead of scanned: few are cheap to compile, and then a layer is a static slice."""
        return self.num_layers <= 4


REMAT: dict[str, tuple[str, ...] | None] = {
    "none": None,
    "full": (),
    "attention": ("attention",),
    "mlp": ("attention", "qkv", "attention_out"),
    "projections": ("attention", "qkv", "attention_out", "mlp_in", "adapters_in"),
}
"""What a layer keeps for the backward pass, beside its input: everything (None), or the named activations; it computes the
rest again. From "full" down to "projections", and then "none", more memory and less work: "mlp" recomputes the MLP alone."""


class Parameter(NamedTuple):
    """The one declaration of a parameter.

    Attributes:
      shape: with the layer axis first if it is stacked.
      dtype: of storage.
      axes: logical axis names, see `sharding.DEFAULT_RULES`.
      init: (key, shape, dtype) -> array.
      hf_name: its name in Hugging Face checkpoints, with {layer} if it is stacked.
      transpose: whether Hugging Face stores [out, in].
      lora_target: its name among LoRA targets, if it can be one.
    """

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str | None, ...]
    init: Callable[..., jax.Array]
    hf_name: str
    transpose: bool = False
    lora_target: str | None = None


def declarations(config: DecoderConfig) -> dict[tuple[str, ...], Parameter]:
    """Path in the parameter tree -> declaration, for every parameter of the decoder.

    Kernels are [in, out]; parameters of layers have the layer axis first. The output matrix is absent when tied, biases
    and head norms where the family has none.
    """
    c, dtype = config, config.param_dtype
    heads, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    normal, ones, zeros = nn.initializers.normal(0.02), nn.initializers.ones, nn.initializers.zeros

    def vector(name: str, size: int, axis: str | None, init: Callable[..., jax.Array] = ones) -> Parameter:
        return Parameter((c.num_layers, size), dtype, ("layers", axis), init, f"model.layers.{{layer}}.{name}")

    def kernel(name: str, target: str, rows: int, columns: int, axes: tuple[str, str]) -> Parameter:
        hf_name = f"model.layers.{{layer}}.{name}.weight"
        return Parameter((c.num_layers, rows, columns), dtype, ("layers", *axes), normal, hf_name, True, target)

    layers = {
        "input_norm": vector("input_layernorm.weight", c.hidden_size, None),
        "q": kernel("self_attn.q_proj", "q", c.hidden_size, heads, ("embed", "heads")),
        "k": kernel("self_attn.k_proj", "k", c.hidden_size, kv, ("embed", "kv_heads")),
        "v": kernel("self_attn.v_proj", "v", c.hidden_size, kv, ("embed", "kv_heads")),
        "o": kernel("self_attn.o_proj", "o", heads, c.hidden_size, ("heads", "embed")),
        "post_norm": vector("post_attention_layernorm.weight", c.hidden_size, None),
        "gate": kernel("mlp.gate_proj", "gate", c.hidden_size, c.intermediate_size, ("embed", "mlp")),
        "up": kernel("mlp.up_proj", "up", c.hidden_size, c.intermediate_size, ("embed", "mlp")),
        "down": kernel("mlp.down_proj", "down", c.intermediate_size, c.hidden_size, ("mlp", "embed")),
    }
    if c.qkv_bias:
        layers["q_bias"] = vector("self_attn.q_proj.bias", heads, "heads", zeros)
        layers["k_bias"] = vector("self_attn.k_proj.bias", kv, "kv_heads", zeros)
        layers["v_bias"] = vector("self_attn.v_proj.bias", kv, "kv_heads", zeros)
    if c.qk_norm:
        layers["q_norm"] = vector("self_attn.q_norm.weight", c.head_dim, None)
        layers["k_norm"] = vector("self_attn.k_norm.weight", c.head_dim, None)
    embed = Parameter((c.vocab_size, c.hidden_size), dtype, ("vocab", "embed"), normal, "model.embed_tokens.weight")
    table: dict[tuple[str, ...], Parameter] = {("embed",): embed}
    table["final_norm",] = Parameter((c.hidden_size,), dtype, (None,), ones, "model.norm.weight")
    table |= {("layers", name): parameter for name, parameter in layers.items()}
    if not c.tie_embeddings:
        shape = (c.hidden_size, c.vocab_size)
        table["head",] = Parameter(shape, dtype, ("embed", "vocab"), normal, "lm_head.weight", True)
    return table


def tree_of(config: DecoderConfig, value: Callable[[tuple[str, ...], Parameter], Any]) -> dict[str, Any]:
    """The parameter tree with `value(path, declaration)` at every leaf."""
    tree: dict[str, Any] = {}
    for path, parameter in declarations(config).items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value(path, parameter)
    return tree


def abstract_params(config: DecoderConfig) -> dict[str, Any]:
    """The parameter tree as `jax.ShapeDtypeStruct`s, without making an array."""
    return tree_of(config, lambda path, p: jax.ShapeDtypeStruct(p.shape, p.dtype))


def init_params(config: DecoderConfig, key: jax.Array) -> dict[str, Any]:
    """Random parameters in `config.param_dtype`: kernels and embeddings normal with deviation 0.02, norms 1, biases 0.

    Every parameter has its own fold of `key`, so the same key gives the same values under jit and on any mesh.
    """
    places = {path: i for i, path in enumerate(declarations(config))}
    return tree_of(config, lambda path, p: p.init(jax.random.fold_in(key, places[path]), p.shape, p.dtype))


def head_matrix(config: DecoderConfig, params: Mapping[str, Any]) -> jax.Array:
    """The output matrix [D, V] in the activations' dtype: logits = hidden @ head; the embedding's transpose when tied."""
    head = (params["embed"].T if config.tie_embeddings else params["head"]).astype(config.dtype)
    # Gathered over fsdp once: left alone, GSPMD gathers it for every chunk of the loss and every token of a completion.
    return constrain(head, (None, "vocab"), LAYOUTS[config.layout])


def unstacked(config: DecoderConfig, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of which an unrolled decoder takes layers without a copy: tuples of L arrays for stacked ones.

    Sliced, and kernels transposed, before a decoding loop instead of for every token. A scanned decoder's are returned as
    they are.
    """
    if not config.unrolled:
        return dict(variables)
    split = lambda tree: jax.tree.map(lambda x: tuple(x[i] for i in range(config.num_layers)), tree)
    kernels = {path[1] for path, parameter in declarations(config).items() if parameter.lora_target}
    layers = {
        name: matrices.Transposed(x.swapaxes(1, 2)) if name in kernels and isinstance(x, jax.Array) else x
        for name, x in variables["params"]["layers"].items()
    }
    params = variables["params"] | {"layers": split(layers)}
    return {"params": params} | ({"lora": split(variables["lora"])} if "lora" in variables else {})


def positions_from_mask(mask: jax.Array) -> jax.Array:
    """Positions that count real tokens; padding repeats the position before it, at least 0 (as transformers' generate).

    Args:
      mask: [B, T] bool or int, true for real tokens; padding may stand anywhere.

    Returns:
      [B, T] int32.
    """
    return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)


class Decoder(nn.Module):
    """The decoder up to its final norm; `hidden @ head_matrix(config, params)` gives logits.

    `apply({"params": params}, ...)`, or `apply({"params": params, "lora": adapters}, ...)` with adapters
    {target: {"a": [L, in, r], "b": [L, r, out]}} in use. Kernels among the parameters may be in int8, see
    `quantization.int8_kernels`.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array,
        segment_ids: jax.Array | None = None,
        cache: KVCache | None = None,
        cache_index: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the decoder.

        Args:
          tokens: [B, T] int32 below vocab_size.
          positions: [B, T] int32, for RoPE.
          segment_ids: [B, T] int32; a token attends to earlier tokens of its own segment; 0 is padding. With a
            `cache_index`, None: a token attends to the places of the cache up to its own.
          cache: where these tokens' keys and values are written. Place j of a row is its position j: no padding before
            or between, what stands after a row's tokens is overwritten by those to come.
          cache_index: [B] int32, the place of each row's first token, with cache_index + T at most the cache's length
            (XLA would move the write back silently). None: the cache is empty, and the tokens, which stand first in
            it, attend only among themselves.

        Returns:
          Hidden states [B, T, D] in `config.dtype` after the final norm, and the extended cache (None without one). At
          padding they are finite and mean nothing.

        Raises:
          KeyError: the collection `params` is missing or lacks an entry.
        """
        if self.is_initializing():
            params: Mapping[str, Any] = init_params(self.config, self.make_rng("params"))
            for name, value in params.items():
                self.param(name, lambda _, value=value: value)
        else:
            params = self.variables["params"]
        lora = dict(self.variables.get("lora", {}))
        run = automatic(functools.partial(_decode, self.config), tokens, cache)
        return run(params, lora, tokens, segment_ids, positions, cache, cache_index)


def _decode(
    config: DecoderConfig,
    params: Mapping[str, Any],
    lora: Mapping[str, Any],
    tokens: jax.Array,
    segment_ids: jax.Array | None,
    positions: jax.Array,
    cache: KVCache | None,
    cache_index: jax.Array | None,
) -> tuple[jax.Array, KVCache | None]:
    x = params["embed"][tokens].astype(config.dtype)  # [B, T, D]
    x = constrain(x, ("batch", None, None), LAYOUTS[config.layout])
    cos, sin = _rope(config, positions)  # [B, 1, T, Hd]
    mask = None
    if cache_index is None and config.kernels == "xla":
        assert segment_ids is not None, "whole sequences have them"
        mask = segment_mask(segment_ids)

    def layer(carry: Any, scanned: Any) -> tuple[Any, None]:
        x, cache = carry
        index, weights, adapters = scanned
        x, cache = _layer(config, weights, adapters, x, cos, sin, segment_ids, mask, cache, index, cache_index)
        return (x, cache), None

    if cache is not None and config.unrolled:
        for i in range(config.num_layers):  # the layer's number is static here, unlike in an unrolled scan
            weights, adapters = (
                jax.tree.map(lambda x, i=i: x[i], t, is_leaf=_is_tuple) for t in (params["layers"], lora)
            )
            (x, cache), _ = layer((x, cache), (i, weights, adapters))
    else:
        kept = REMAT[config.remat]
        if kept is not None:
            policy = jax.checkpoint_policies.save_only_these_names(*kept)
            # A loop keeps XLA from merging the recomputation with the forward pass; without one it has to be told.
            layer = jax.checkpoint(layer, prevent_cse=config.unrolled, policy=policy)
        scanned = (jnp.arange(config.num_layers), params["layers"], lora)
        unroll = config.num_layers if config.unrolled else 1
        (x, cache), _ = jax.lax.scan(layer, (x, cache), scanned, unroll=unroll)
    return _rms_norm(x, params["final_norm"], config.rms_norm_eps), cache


def _is_tuple(x: Any) -> bool:
    return isinstance(x, tuple)


def _layer(
    config: DecoderConfig,
    weights: Mapping[str, Any],
    adapters: Mapping[str, Any],
    x: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    segment_ids: jax.Array | None,
    mask: jax.Array | None,
    cache: KVCache | None,
    index: jax.Array | int,
    cache_index: jax.Array | None,
) -> tuple[jax.Array, KVCache | None]:
    def project(h: jax.Array, *names: str) -> list[jax.Array]:
        return _project(config, weights, adapters, h, names)

    batch, length, _ = x.shape
    h = _rms_norm(x, weights["input_norm"], config.rms_norm_eps)
    projected = project(h, "q", "k", "v")
    if length == 1 and "q" not in adapters:
        # Of one token, XLA would make the product with heads apart, and for that exchange a matrix's axes every time.
        projected = jax.lax.optimization_barrier(projected)
    heads = (y.reshape(batch, length, -1, config.head_dim) for y in projected)
    q, k, v = (y.swapaxes(1, 2) for y in heads)  # [B, heads, T, Hd]: each head's sequence in one piece
    if config.qk_norm:
        q = _rms_norm(q, weights["q_norm"], config.rms_norm_eps)
        k = _rms_norm(k, weights["k_norm"], config.rms_norm_eps)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    if cache is not None:
        cache = write(config, cache, k, v, index, cache_index)
    if cache_index is None:
        assert segment_ids is not None, "whole sequences have them"
        q, k, v = (checkpoint_name(y, "qkv") for y in (q, k, v))
        attended = causal_attention(q, k, v, segment_ids, mask, kernels=config.kernels, layout=config.layout)
    else:
        assert cache is not None, "the index is a place in it"
        attended = decode_attention(config, q, cache, index, cache_index)
    (attended,) = project(attended.swapaxes(1, 2).reshape(batch, length, -1), "o")
    x = x + checkpoint_name(attended, "attention_out")
    h = _rms_norm(x, weights["post_norm"], config.rms_norm_eps)
    gate, up = (checkpoint_name(y, "mlp_in") for y in project(h, "gate", "up"))
    (h,) = project(nn.silu(gate) * up, "down")
    return constrain(x + h, ("batch", None, None), LAYOUTS[config.layout]), cache


def _project(
    config: DecoderConfig, weights: Mapping[str, Any], adapters: Mapping[str, Any], h: jax.Array, names: Sequence[str]
) -> list[jax.Array]:
    """The named projections of h [B, T, in], with bias and adapter where they have one."""
    rules = LAYOUTS[config.layout]
    adapted = [name for name in names if name in adapters]
    # All of a token's products with `a` are one: a rank alone is narrower than a TPU's matrix unit.
    low = {}
    if adapted:
        a = [adapters[name]["a"].astype(config.dtype) for name in adapted]
        a = [constrain(x, (_whole(config, name)[0], None), rules) for name, x in zip(adapted, a, strict=True)]
        edges = np.cumsum([x.shape[1] for x in a[:-1]])
        products = checkpoint_name(h @ jnp.concatenate(a, axis=1), "adapters_in")
        low = dict(zip(adapted, jnp.split(products, edges, axis=-1), strict=True))
    outputs = []
    for name in names:
        w = matrices.whole(weights[name], _whole(config, name), rules, config.dtype)
        if name in low:
            b = constrain(adapters[name]["b"].astype(config.dtype), (None, _whole(config, name)[1]), rules)
            y = _matmul_with_adapter(h, w, config.lora_scale * low[name], b)
        else:
            y = matrices.matmul(h, w)
        if f"{name}_bias" in weights:
            y += weights[f"{name}_bias"].astype(config.dtype)
        outputs.append(y)
    return outputs


def _matmul_with_adapter(h: jax.Array, w: matrices.Matrix, low: jax.Array, b: jax.Array) -> jax.Array:
    """h @ w + low @ b, for h [B, T, in] and low [B, T, r]."""
    # Of one token the weights are the larger part, and are better read where they lie.
    if h.shape[1] == 1:
        return matrices.matmul(h, w) + low @ b
    return _joint_matmul(h, matrices.plain(w, h.dtype), low, b)


@jax.custom_vjp
def _joint_matmul(h: jax.Array, w: jax.Array, low: jax.Array, b: jax.Array) -> jax.Array:
    """As one product over in + r: the sum of two reads and writes [B, T, out] once more, which on a TPU costs a fourth."""
    return jnp.concatenate([h, low], axis=-1) @ jnp.concatenate([w, b], axis=0)


def _joint_matmul_backward(residuals: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    h, w, low, b = residuals
    joint = jnp.einsum("bto,io->bti", gradient, jnp.concatenate([w, b], axis=0))
    # Apart, so that a frozen w, whose gradient nobody asks for, has none computed.
    w_gradient, b_gradient = (jnp.einsum("bti,bto->io", x, gradient) for x in (h, low))
    return joint[..., : h.shape[-1]], w_gradient, joint[..., h.shape[-1] :], b_gradient


_joint_matmul.defvjp(lambda *inputs: (_joint_matmul(*inputs), inputs), _joint_matmul_backward)


def _whole(config: DecoderConfig, name: str) -> tuple[str | None, str | None]:
    """Axes of a layer's kernel with "embed" whole: gathered before use. Left alone, GSPMD adds partial products in a loop."""
    rows, columns = (None if axis == "embed" else axis for axis in declarations(config)["layers", name].axes[1:])
    return rows, columns


def _rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return weight.astype(x.dtype) * y.astype(x.dtype)


def _rope(config: DecoderConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine [B, 1, T, Hd] float32."""
    exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponent  # [Hd / 2]
    if config.rope_scaling is not None:
        frequencies = _llama3_frequencies(config.rope_scaling, frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    angles = jnp.concatenate([angles, angles], axis=-1)[:, None]
    return jnp.cos(angles), jnp.sin(angles)


def _llama3_frequencies(rope: Llama3Rope, frequencies: jax.Array) -> jax.Array:
    turns = rope.original_max_position * frequencies / (2 * jnp.pi)  # turns within the original context
    ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    ramp = jnp.clip(ramp, 0.0, 1.0)
    return (1 - ramp) * frequencies / rope.factor + ramp * frequencies


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """RoPE on x [B, heads, T, Hd]."""
    half = x.shape[-1] // 2
    # The halves change places, and the first its sign, by a product with a matrix of 0 and +-1, which is exact: halves of
    # a head are less than a TPU register is wide, and slicing them costs more than the rest of the rotation.
    turn = np.zeros((2 * half, 2 * half), np.float32)
    turn[np.arange(half) + half, np.arange(half)] = -1
    turn[np.arange(half), np.arange(half) + half] = 1
    turned = jnp.matmul(x, jnp.asarray(turn, x.dtype), precision="highest", preferred_element_type=jnp.float32)
    return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)
