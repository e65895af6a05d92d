"""Rubric-conditioned self-distillation (RCSD, arXiv 2606.19327) in JAX.

The numerics (`losses`, `models`, `sampling`) can be imported without the rest; `roles`, `rubrics` and `data`
prepare what the two roles see; `methods` and `run` compose them; `main` reads flags.
"""

import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__version__ = "0.2.0"  # `setup.py` reads it from here

_MOVED = {  # public modules of 0.1 -> where they are now
    "rcsd_jax.attribution": "rcsd_jax.roles.attribution",
    "rcsd_jax.config": "rcsd_jax.settings.keys",
    "rcsd_jax.contexts": "rcsd_jax.roles.contexts",
    "rcsd_jax.continuous_batching": "rcsd_jax.sampling.slots",
    "rcsd_jax.errors": "rcsd_jax.host.errors",
    "rcsd_jax.policy_gradient": "rcsd_jax.losses.policy_gradient",
    "rcsd_jax.token_classes": "rcsd_jax.roles.token_classes",
    "rcsd_jax.train": "rcsd_jax.methods.step",
}


class _OldNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a moved module under its old name: it is the same module object."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in _MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        # `import` takes the module from here after this.
        sys.modules[module.__name__] = importlib.import_module(_MOVED[module.__name__])


sys.meta_path.append(_OldNames())
