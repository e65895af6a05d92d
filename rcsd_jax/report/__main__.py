"""`python -m rcsd_jax.report WORKDIR [--no-tokens]`: writes WORKDIR/report.html, of a new or an old run."""

from __future__ import annotations

import argparse
import sys

import rcsd_jax
from rcsd_jax.cli.run_program import without_torch
from rcsd_jax.host.console import Console, to_stderr
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import as_path


def main(argv: list[str] | None = None) -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(prog="python -m rcsd_jax.report", description="Writes WORKDIR/report.html.")
    parser.add_argument("workdir", help="the workdir of a run, a folder or a URL")
    parser.add_argument(
        "--no-tokens", action="store_true", help="do not load weights: show completions without token scores"
    )
    parser.add_argument(
        "--version", action="version", help="print the version", version=f"rcsd_jax {rcsd_jax.__version__}"
    )
    flags = parser.parse_args(argv)
    if argv is None:
        without_torch()

    from rcsd_jax.report.write import write_report  # it imports JAX, which takes seconds: flags are read before

    try:
        console = Console()
        path = write_report(as_path(flags.workdir), tokens=not flags.no_tokens, console=console)
    except UserError as error:
        to_stderr(f"error: {error}")
        sys.exit(2)
    console.print(f"report: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
