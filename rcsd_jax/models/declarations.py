"""Every parameter of the decoder, declared once. Initial values, shapes, shardings and LoRA targets derive from this table.

(The idea is jax-ml/jax-llm-examples'.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from rcsd_jax.models import layer
from rcsd_jax.models.config import DecoderConfig
from rcsd_jax.models.parameters import Declared, Parameter, matrix, scale

Path: TypeAlias = tuple[str, ...]
"""Where a parameter is in the tree: ("embed",), ("final_norm",), ("head",), or ("layers", name)."""


def declarations(config: DecoderConfig) -> dict[Path, Parameter]:
    """Path in the parameter tree -> declaration, for every parameter of the decoder.

    Matrices are [in, out]. Parameters of layers are stacked: their first axis is the layer. The output matrix is absent if
    it is tied to the embedding.
    """
    embed, vocab = ("embed", config.hidden_size), ("vocab", config.vocab_size)
    table: dict[Path, Parameter] = {
        ("embed",): matrix(config, vocab, embed)._replace(is_matrix=False),  # rows are looked up
        ("final_norm",): scale(config, config.hidden_size),
    }
    table |= {("layers", name): _stacked(p, config.num_layers) for name, p in layer.declared(config).items()}
    if not config.tie_embeddings:
        table["head",] = matrix(config, embed, vocab)
    return table


def _stacked(parameter: Parameter, layers: int) -> Parameter:
    return parameter._replace(shape=(layers, *parameter.shape), axes=("layers", *parameter.axes))


def layer_matrices(config: DecoderConfig) -> Declared:
    """The stacked matrices of the layers, by name: what can have an adapter and can be quantized."""
    return {path[-1]: p for path, p in declarations(config).items() if path[0] == "layers" and p.is_matrix}


def tree_of(config: DecoderConfig, value: Callable[[Path, Parameter], Any]) -> dict[str, Any]:
    """The parameter tree with `value(path, declaration)` at every leaf."""
    tree: dict[str, Any] = {}
    for path, parameter in declarations(config).items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value(path, parameter)
    return tree


def leaf_at(tree: Any, path: Path) -> Any:
    """The leaf at a path of such a tree."""
    for name in path:
        tree = tree[name]
    return tree


def abstract_params(config: DecoderConfig) -> dict[str, Any]:
    """The parameter tree as `jax.ShapeDtypeStruct`s, without making an array."""
    return tree_of(config, lambda _, p: jax.ShapeDtypeStruct(p.shape, p.dtype))


def init_params(config: DecoderConfig, key: jax.Array) -> dict[str, Any]:
    """Random parameters in `config.param_dtype`: matrices and embeddings normal with deviation 0.02, norms 1, biases 0.

    Every parameter has its own fold of `key`, so the same key gives the same values under jit and on any mesh.
    """
    places = {path: i for i, path in enumerate(declarations(config))}
    return tree_of(config, lambda path, p: p.init(jax.random.fold_in(key, places[path]), p.shape, p.dtype))
