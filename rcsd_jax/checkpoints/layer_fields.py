"""The fields of config.json that say which kind each layer is: read, and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rcsd_jax.checkpoints.fields import Fields
from rcsd_jax.checkpoints.rope_fields import FULL, SLIDING, read_rope, written_rope
from rcsd_jax.host.errors import UserError
from rcsd_jax.models.config import DecoderConfig, LayerKind
from rcsd_jax.models.rope import Rope


def layers(
    fields: Fields,
    window: int | None,
    slides: Callable[[int], bool],
    *,
    rotates: Callable[[int], bool] = lambda layer: True,
    ropes: Mapping[str, Rope] | None = None,
) -> dict[str, Any]:
    """The arguments of `DecoderConfig` about its layers' kinds.

    Args:
      fields: of config.json.
      window: of sliding layers; None: no layer slides.
      slides: whether a layer slides, if there is a window and `layer_types` does not say so.
      rotates: whether a layer has RoPE.
      ropes: RoPE of the two types of layers; None: it is the same in all, see `read_rope`.

    Raises:
      UserError: `layer_types` is of other layers, of a type that the decoder does not have, or asks for a window that is not there.
    """
    count = fields.size("num_hidden_layers")
    types = fields.get("layer_types", [SLIDING if window and slides(layer) else FULL for layer in range(count)])
    if not isinstance(types, list) or not set(types) <= {FULL, SLIDING}:
        raise UserError(
            f"only {FULL} and {SLIDING} are supported",
            remedy="use a checkpoint without linear or chunked attention",
            file=fields.file,
            field="layer_types",
            value=types,
        )
    if len(types) != count:
        raise fields.broken("not of num_hidden_layers layers", "layer_types", types)
    if SLIDING in types and not window:
        raise fields.broken("a layer slides, but sliding_window does not say how far", "layer_types", types)
    ropes = ropes or dict.fromkeys((FULL, SLIDING), read_rope(fields))
    kinds = [LayerKind(type == SLIDING, ropes[type] if rotates(i) else None) for i, type in enumerate(types)]
    found: dict[str, Any] = dict(rope_theta=ropes[FULL].theta, rope_scaling=ropes[FULL].scaling)
    if set(kinds) != {LayerKind(False, ropes[FULL])}:
        found |= dict(layer_kinds=tuple(kinds), window=window if SLIDING in types else None)
    return found


def window_in_use(fields: Fields) -> int | None:
    """The window of families whose `use_sliding_window` turns it on."""
    return fields.size_or_none("sliding_window") if fields.flag("use_sliding_window", False) else None


def written_layers(config: DecoderConfig) -> dict[str, Any]:
    """`layer_types`, `sliding_window`, and RoPE by type where the two types differ."""
    kinds = [config.kinds[number] for number in config.kind_numbers]
    types = [SLIDING if kind.sliding else FULL for kind in kinds]
    ropes = {type: kind.rope for type, kind in zip(types, kinds, strict=True) if kind.rope}
    written: dict[str, Any] = dict(layer_types=types, sliding_window=config.window)
    if len(set(ropes.values())) > 1:
        written["rope_parameters"] = {type: written_rope(rope) for type, rope in ropes.items()}
    return written
