"""`python -m rcsd_jax.share WORKDIR --to=OWNER/NAME`: uploads a run's model with a card to the Hugging Face hub."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

import rcsd_jax
from rcsd_jax.cli.run_program import without_torch
from rcsd_jax.host.console import Console, to_stderr
from rcsd_jax.host.errors import UserError
from rcsd_jax.host.files import AnyPath, as_path


def main(argv: list[str] | None = None) -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(prog="python -m rcsd_jax.share", description=__doc__.partition(": ")[2])
    parser.add_argument("workdir", help="the workdir of a complete run, or of one of its stages")
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="the repository; it is made if there is none")
    parser.add_argument("--dry_run", metavar="FOLDER", help="write the files there, and upload nothing")
    parser.add_argument("--adapter", action="store_true", help="share the adapter even if there is a merged model")
    parser.add_argument("--private", action="store_true", help="make the new repository private")
    parser.add_argument("--base", default="", metavar="OWNER/NAME", help="of the base model, if the run read a folder")
    parser.add_argument("--license", default="", metavar="ID", help="such as apache-2.0, if the base does not say it")
    parser.add_argument("--noreport", action="store_true", help="leave out report.html, which shows rows of the data")
    parser.add_argument(
        "--version", action="version", help="print the version", version=f"rcsd_jax {rcsd_jax.__version__}"
    )
    flags = parser.parse_args(argv)
    if argv is None:
        without_torch()
    try:
        _share(flags, Console())
    except UserError as error:
        to_stderr(f"error: {error}")
        sys.exit(2)


def _share(flags: argparse.Namespace, console: Console) -> None:
    from rcsd_jax.share.facts import facts_of  # they import JAX, which takes seconds: flags are read before
    from rcsd_jax.share.folder import upload, write_folder

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", flags.to):
        raise UserError("not the name of a repository", field="--to", value=flags.to, remedy="write OWNER/NAME")
    workdir = as_path(flags.workdir)
    facts = facts_of(workdir, adapter=flags.adapter, base=flags.base, license=flags.license)
    report = None if flags.noreport else _report(workdir, facts.folder)
    if report is None and not flags.noreport:
        console.print(f"no report.html: python -m rcsd_jax.report {workdir} writes it", soft_wrap=True)
    if facts.license is None:
        told = f"{facts.base} does not say its license: pass --license=ID, or add 'license:' to README.md"
        console.print(told, soft_wrap=True)
    if facts.adapter and not facts.on_hub:
        told = f"the base {facts.base} is a folder, which nobody finds: pass --base=OWNER/NAME"
        console.print(told, soft_wrap=True)
    if flags.dry_run:
        folder = Path(flags.dry_run).absolute()
        names = write_folder(folder, facts, flags.to, report=report)
        console.print(f"written to {folder}: {', '.join(names)}", soft_wrap=True)
        return
    with tempfile.TemporaryDirectory(prefix="rcsd_jax_") as made:
        names = write_folder(Path(made), facts, flags.to, report=report, copy=False)
        console.print(f"uploading {', '.join(names)}", soft_wrap=True)
        console.print(f"shared: {upload(Path(made), flags.to, private=flags.private)}", soft_wrap=True)


def _report(workdir: AnyPath, folder: AnyPath) -> AnyPath | None:
    """The report of the run, which a job of several stages writes above them."""
    places = dict.fromkeys((workdir, folder, folder.parent))
    return next((path for place in places if (path := place / "report.html").exists()), None)


if __name__ == "__main__":
    main()
