"""Says in the notebooks where they are published: a badge that opens each in Colab, and the package that it installs there.

    python colab/publish.py OWNER/NAME [--source=rcsd_jax==0.2.0]

`OWNER/NAME` is the repository on GitHub. Without `--source` the notebooks install its main branch.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"
OPENS = "https://colab.research.google.com/github/{repository}/blob/main/colab/{name}.ipynb"


def published(notebook: nbformat.NotebookNode, name: str, repository: str, source: str) -> nbformat.NotebookNode:
    """The notebook with its badge above the first cell's text, and with `source` as what it installs; an earlier badge goes.

    Args:
      name: of the notebook's file, without its suffix.
      repository: "OWNER/NAME" on GitHub.
      source: what pip installs, such as "git+https://github.com/OWNER/NAME" or "rcsd_jax==0.2.0".
    """
    badge = BADGE.format(address=OPENS.format(repository=repository, name=name))
    first, parameters = notebook.cells[0], notebook.cells[1]
    first.source = f"{badge}\n\n" + re.sub(r"\A\[!\[Open in Colab\].*\n\n", "", first.source)
    parameters.source = re.sub(r'^SOURCE = ".*?"', f'SOURCE = "{source}"', parameters.source, flags=re.M)
    return notebook


def main() -> None:
    """Rewrites all notebooks of this folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", metavar="OWNER/NAME")
    parser.add_argument("--source", default="", help="what pip installs; without it, the repository's main branch")
    flags = parser.parse_args()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", flags.repository):
        parser.error(f"{flags.repository!r} is not OWNER/NAME, such as google/flax")
    source = flags.source or f"git+https://github.com/{flags.repository}"
    for path in sorted(HERE.glob("*.ipynb")):
        nbformat.write(published(nbformat.read(path, as_version=4), path.stem, flags.repository, source), path)
        print(path.name)


if __name__ == "__main__":
    main()
