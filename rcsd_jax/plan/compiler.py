"""Compiles a program with the TPU compiler and keeps the answer, so that the next plan of the same program does not compile again.

JAX's own cache writes programs of a slice that is not present, but cannot read them. A plan needs only their text.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of HBM on one chip. `needed` is the compiler's allocation: arguments, results that do not reuse arguments, and
    temporaries. `peak` is the most that is in use at once."""

    arguments: float
    temporaries: float
    results: float
    peak: float
    needed: float


@dataclasses.dataclass(frozen=True)
class Compilation:
    """The compiler's answer for a program.

    Attributes:
      text: the optimised HLO; empty if it was refused.
      memory: None if it was refused.
      refused: the compiler's reason, that the program does not fit into HBM; else empty.
      seconds: the time that compiling took.
      kept: it was compiled by an earlier plan.
    """

    text: str
    memory: Memory | None
    refused: str
    seconds: float
    kept: bool = False


def ask(lowered: jax.stages.Lowered, devices: Sequence[Any], folder: Path | None = None) -> Compilation:
    """The compiler's answer, read from `folder` if an earlier plan stored it there.

    Args:
      lowered: the program.
      devices: of the slice, in the mesh's order.
      folder: keeps answers; None keeps none.

    Raises:
      JaxRuntimeError: the compiler refuses the program for another reason than its memory.
    """
    path = None if folder is None else folder / f"tpu_{_key(lowered, devices)}.json.gz"
    if path is not None and (answer := _read(path)) is not None:
        return answer
    answer = _compile(lowered)
    if path is not None:
        _write(path, answer)
    return answer


def _compile(lowered: jax.stages.Lowered) -> Compilation:
    began = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        of_kernel = "memory space vmem" in str(error)  # its blocks are too large, on any slice
        if of_kernel or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compilation("", None, str(error), time.monotonic() - began)
    m = compiled.memory_analysis()
    text = compiled.as_text()
    assert m is not None and text is not None, "the TPU compiler gives both"
    results = m.output_size_in_bytes - m.alias_size_in_bytes
    needed = m.argument_size_in_bytes + m.temp_size_in_bytes + results
    memory = Memory(m.argument_size_in_bytes, m.temp_size_in_bytes, results, m.peak_memory_in_bytes, needed)
    return Compilation(text, memory, "", time.monotonic() - began)


def _key(lowered: jax.stages.Lowered, devices: Sequence[Any]) -> str:
    """A hash of everything that decides the answer: program, slice, versions, and the compiler's flags."""
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")]
    places = [(d.device_kind, d.id, list(d.coords), d.core_on_chip) for d in devices]
    settings = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    hashed = hashlib.sha256(json.dumps([versions, places, settings]).encode())
    hashed.update(lowered.as_text().encode())
    return hashed.hexdigest()


def _read(path: Path) -> Compilation | None:
    try:
        fields = json.loads(gzip.decompress(path.read_bytes()))
        memory = fields.pop("memory")
        return Compilation(**fields, memory=Memory(**memory) if memory else None, kept=True)
    except (OSError, EOFError, ValueError, KeyError, TypeError):  # missing, incomplete, or of another version
        return None


def _write(path: Path, answer: Compilation) -> None:
    """Writes the file atomically; a full disk does not make the plan fail."""
    fields = dataclasses.asdict(answer)
    del fields["kept"]
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(gzip.compress(json.dumps(fields).encode(), 5))
        os.replace(file.name, path)
    except OSError:
        return
