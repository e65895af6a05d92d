"""`python -m rcsd_jax.world FOLDER [--count=N] [--seed=N] [--flawed=SHARE] [--giving=SHARE]`: writes worded problems as JSONL files.

A file for each split: train, eval (numbers that their law never has in training) and ood (other sentences). Each row has a
question after worked examples, a reference, a rubric, and the facts from which the grader "english" grades an answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from rcsd_jax.host.console import Console, to_stderr
from rcsd_jax.host.files import write_text
from rcsd_jax.world.english import problems, references, rows


def main(argv: list[str] | None = None) -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(prog="python -m rcsd_jax.world", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("folder", type=Path, help="where the files are written; it is made if there is none")
    parser.add_argument("--count", type=_count, default=2048, help="rows of each file")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other questions")
    parser.add_argument(
        "--flawed", type=_share, default=references.FLAWED, help="share of references with a wrong step, 0 to 1"
    )
    parser.add_argument(
        "--giving", type=_share, default=rows.GIVING, help="share of rubrics that give the answer away, 0 to 1"
    )
    flags = parser.parse_args(argv)
    try:
        flags.folder.mkdir(parents=True, exist_ok=True)
        for split in problems.SPLITS:
            found = rows.records(split, flags.count, seed=flags.seed, flawed=flags.flawed, giving=flags.giving)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found]
            write_text(flags.folder / f"{split}.jsonl", "".join(lines))
    except OSError as error:
        to_stderr(f"error: {flags.folder}: cannot be written ({error.strerror}); name another folder")
        sys.exit(2)
    names = ", ".join(f"{split}.jsonl" for split in problems.SPLITS)
    Console().print(f"written: {flags.folder}, {flags.count} rows in each of {names}", soft_wrap=True)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows, such as 512")
    return int(text)


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (share := float(text)) <= 1:
            return share
    raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")


if __name__ == "__main__":
    main()
