"""Examples from a data set of the Hugging Face hub, or from a folder that is laid out like one, through `datasets`."""

from __future__ import annotations

from typing import Any

from rcsd_jax.data import records
from rcsd_jax.data.examples import Example
from rcsd_jax.host.errors import UserError, first_line

_FILES = (".jsonl", ".json", ".parquet", ".csv")


def read_hub(name: str, *, split: str, **settings: Any) -> list[Example]:
    """Reads one split, in the order of its files; other arguments and errors as in `records.to_examples`.

    Args:
      name: "owner/data_set", "owner/data_set:configuration", or "owner/data_set:file" for one file of it; or a folder.
      split: a split, or a slice of one such as "train[:10%]".
      **settings: of `records.to_examples`.

    Raises:
      UserError: also if the data set cannot be read, or the package `datasets` is missing.
    """
    try:
        import datasets  # optional
    except ImportError as error:
        raise UserError(
            "reading from the hub needs the package datasets",
            field="data.path",
            value=name,
            remedy="pip install 'rcsd_jax[hub]'",
        ) from error
    repository, _, configuration = name.partition(":")
    try:
        one_file = configuration.endswith(_FILES)
        chosen = {"data_files": configuration} if one_file else {"name": configuration or None}
        rows = datasets.load_dataset(repository, split=split, **chosen)
    except Exception as error:  # downloads, licences, missing splits: the library's own message says what is wrong
        remedy = "check name, configuration and split (OWNER/NAME:CONFIGURATION#SPLIT), the network, and huggingface-cli login"
        problem = f"the data set cannot be read from the hub ({type(error).__name__}: {first_line(error, 200)})"
        raise UserError(problem, remedy=remedy, field="data.path", value=f"{name}#{split}") from error
    origin = repository.rstrip("/").rpartition("/")[2]
    return records.to_examples(enumerate(rows, start=1), file=f"hub:{name}[{split}]", origin=origin, **settings)
