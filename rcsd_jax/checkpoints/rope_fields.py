"""The fields of config.json about RoPE: read, and written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rcsd_jax.checkpoints.fields import Fields
from rcsd_jax.host.errors import UserError
from rcsd_jax.models.rope import DynamicRope, LinearRope, Llama3Rope, Rope, Scaling, YarnRope

FULL, SLIDING = "full_attention", "sliding_attention"
"""The types of layers, as config.json names them."""

_ORIGINAL = "original_max_position_embeddings"
# Kind of scaling -> its fields.
_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "yarn": ("factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}


def read_rope(fields: Fields) -> Rope:
    """RoPE from transformers 5's `rope_parameters` or the older `rope_theta` and `rope_scaling`.

    If both are there, transformers takes `rope_scaling` for all of `rope_parameters`, so a theta that stands only there is
    lost. That is followed if it makes no difference, and otherwise refused.
    """
    if not fields.raw.get("rope_scaling"):
        return _rope_at(fields, "rope_parameters")
    found = _rope_at(fields, "rope_scaling")
    if fields.raw.get("rope_parameters") and _rope_at(fields, "rope_parameters") != found:
        raise _contradiction(fields)
    return found


def ropes_by_type(fields: Fields, *, full: float, sliding: float, sliding_theta: str | None) -> dict[str, Rope]:
    """RoPE of layers of each type, from `rope_parameters` by type or the older fields.

    Args:
      fields: of config.json.
      full, sliding: theta where config.json leaves it out.
      sliding_theta: the older field with theta of sliding layers; the older `rope_scaling` is that of other layers only.
    """
    thetas = {
        FULL: fields.positive("rope_theta", full),
        SLIDING: fields.positive(sliding_theta, sliding) if sliding_theta else sliding,
    }
    nested = fields.raw.get("rope_parameters") or {}
    if not isinstance(nested, dict):
        raise fields.broken("not an object", "rope_parameters", nested)
    for key, value in nested.items():
        if key not in thetas and value is not None:
            problem = f"neither {FULL} nor {SLIDING}"
            raise UserError(
                problem,
                remedy="write RoPE by type of layer",
                file=fields.file,
                field=f"rope_parameters.{key}",
                value=value,
            )
    older = fields.raw.get("rope_scaling")
    if older and nested:
        raise _contradiction(fields)
    return {
        FULL: _rope_of(
            fields, older or nested.get(FULL), "rope_scaling" if older else f"rope_parameters.{FULL}", thetas[FULL]
        ),
        SLIDING: _rope_of(fields, nested.get(SLIDING), f"rope_parameters.{SLIDING}", thetas[SLIDING]),
    }


def _contradiction(fields: Fields) -> UserError:
    return UserError(
        "contradicts rope_parameters, in whose place it is taken, rope_theta included",
        remedy="write it into rope_parameters, or take it out",
        file=fields.file,
        field="rope_scaling",
        value=fields.raw["rope_scaling"],
    )


def _rope_at(fields: Fields, name: str) -> Rope:
    return _rope_of(fields, fields.raw.get(name), name, fields.get("rope_theta", 10000.0), truncates=True)


def _rope_of(fields: Fields, rope: Any, name: str, theta: Any, *, truncates: bool = False) -> Rope:
    """RoPE from an object of config.json.

    Args:
      fields: of config.json.
      rope: the object.
      name: where it stands.
      theta: if it is not in the object.
      truncates: whether transformers looks there for YaRN's `truncate`.
    """
    rope = rope or {}
    if not isinstance(rope, dict):
        raise fields.broken("not an object", name, rope)
    where = f"{name}.rope_theta" if "rope_theta" in rope else "rope_theta"
    theta = float(fields.check_positive(rope.get("rope_theta", theta), where))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _KINDS:
        raise UserError(
            "RoPE scaling is not supported",
            remedy=f"use {', '.join(_KINDS)}, or remove the scaling and stay within the original context length",
            file=fields.file,
            field=f"{name}.rope_type",
            value=kind,
        )
    known = {"rope_type", "type", "rope_theta", *_KINDS[kind]} - ({"truncate"} if not truncates else set())
    for key, value in rope.items():
        whole = key == "partial_rotary_factor" and value == 1.0
        if key not in known and value is not None and not whole:
            problem, remedy = f"RoPE of type {kind} has no such field", "take it out of config.json if it has no effect"
            raise UserError(problem, remedy=remedy, file=fields.file, field=f"{name}.{key}", value=value)
    return Rope(theta, _scaling(fields, rope, name, kind))


def _scaling(fields: Fields, rope: Mapping[str, Any], name: str, kind: str) -> Scaling | None:
    def number(key: str, default: Any = None) -> Any:
        value = rope.get(key)
        return fields.check_positive(default if value is None else value, f"{name}.{key}")

    if kind == "default":
        return None
    factor = number("factor")
    if kind in ("linear", "dynamic"):
        return LinearRope(factor) if kind == "linear" else DynamicRope(factor)
    original = number(_ORIGINAL, fields.size("max_position_embeddings"))
    if kind == "llama3":
        return Llama3Rope(factor, number("low_freq_factor"), number("high_freq_factor"), original)
    grown = lambda scale: 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        attention_factor = grown(number("mscale")) / grown(number("mscale_all_dim"))
    else:
        attention_factor = grown(1.0)
    if not isinstance(truncate := rope.get("truncate", True), bool):
        raise fields.broken("neither true nor false", f"{name}.truncate", truncate)
    given = number("attention_factor", attention_factor)
    return YarnRope(factor, original, given, number("beta_fast", 32.0), number("beta_slow", 1.0), truncate)


def written_rope(rope: Rope) -> dict[str, Any]:
    """The object of config.json about RoPE, with its theta, which `read_rope` reads."""
    theta = {"rope_theta": rope.theta}
    match rope.scaling:
        case None:
            return theta | {"rope_type": "default"}
        case LinearRope(factor):
            return theta | {"rope_type": "linear", "factor": factor}
        case DynamicRope(factor):
            return theta | {"rope_type": "dynamic", "factor": factor}
        case Llama3Rope(factor, low, high, original):
            bounds = {"low_freq_factor": low, "high_freq_factor": high, _ORIGINAL: original}
            return theta | {"rope_type": "llama3", "factor": factor, **bounds}
        case YarnRope(factor, original, attention_factor, fast, slow, truncate):
            bounds = {"attention_factor": attention_factor, "beta_fast": fast, "beta_slow": slow}
            whole = {} if truncate else {"truncate": False}
            return theta | {"rope_type": "yarn", "factor": factor, _ORIGINAL: original, **bounds, **whole}
