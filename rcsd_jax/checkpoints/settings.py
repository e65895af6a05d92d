"""Settings for reading, training (all weights, or LoRA's adapters) and writing a model's checkpoint."""

from __future__ import annotations

import dataclasses

from rcsd_jax.host import checks
from rcsd_jax.models.config import REMAT
from rcsd_jax.models.kernels import KERNELS
from rcsd_jax.models.quantization import FORMS

DTYPES = ("float32", "bfloat16")
QUANTIZATIONS = ("none", *FORMS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The section `model`; `settings/keys.py` says what each key means."""

    path: str
    dtype: str = checks.one_of(DTYPES)
    param_dtype: str = checks.one_of(DTYPES)
    remat: str = checks.one_of(REMAT)
    # The interpreted kernels are for tests.
    kernels: str = checks.one_of(("auto", *(name for name in KERNELS if name != "pallas_interpret")))
    quantization: str = checks.one_of(QUANTIZATIONS)
    thought_begin: str
    thought_end: str

    def __post_init__(self) -> None:
        checks.choices(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The section `lora`; `settings/keys.py` says what each key means."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        checks.at_least_zero(self, "rank")
        checks.finite(self, "alpha")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """The section `export`; `settings/keys.py` says what each key means."""

    merged: bool
    adapter: bool
    dtype: str = checks.one_of(DTYPES)

    def __post_init__(self) -> None:
        checks.choices(self)
