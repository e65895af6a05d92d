"""`python -m rcsd_jax.checkpoints FILE.gguf FOLDER`: writes a GGUF file as a Hugging Face directory, which `model.path` can name."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rcsd_jax.host.console import Console, to_stderr
from rcsd_jax.host.errors import UserError


def main(argv: list[str] | None = None) -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m rcsd_jax.checkpoints", description=(__doc__ or "").partition(": ")[2]
    )
    parser.add_argument("file", type=Path, help="a model in a GGUF file, quantized or not")
    parser.add_argument("folder", type=Path, help="where the directory is written, with weights in float32")
    flags = parser.parse_args(argv)

    from rcsd_jax.checkpoints.gguf import convert  # it imports JAX, which takes seconds: flags are read before

    try:
        convert(flags.file, flags.folder)
    except UserError as error:
        to_stderr(f"error: {error}")
        sys.exit(2)
    Console().print(f"written: {flags.folder}", soft_wrap=True)


if __name__ == "__main__":
    main()
