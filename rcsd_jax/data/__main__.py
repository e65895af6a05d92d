"""`python -m rcsd_jax.data FILE [--model=DIR] [--config=configs/stage2.py] [--config.key=value ...]`.

Prints how a file of rows would be read: five rows as both roles see them, lengths, and what is left out and why. No model is loaded.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from rcsd_jax.cli.run_program import run_program
from rcsd_jax.host.console import Console
from rcsd_jax.host.errors import UserError
from rcsd_jax.settings import keys

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A file with get_config(); without it, the teacher sees the rubric or the reference.",
    lock_config=True,
)
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "A model's directory or hub name, for its tokenizer; by default the config's. Without one, lengths are in words.",
)
_ROWS = flags.DEFINE_integer("rows", 5, "How many rows are shown.", lower_bound=0)


def main(argv: list[str]) -> None:
    """The entry point after flags were read."""
    if len(argv) > 2:
        raise UserError(
            "more than one file", field="FILE", value=argv[2], remedy="join files with a comma: a.jsonl,b.jsonl"
        )
    config = _CONFIG.value or keys.stage()
    from rcsd_jax.checkpoints.tokenizer import (
        load_tokenizer,  # they import JAX, which takes seconds: flags are read before
    )
    from rcsd_jax.host.files import fetched
    from rcsd_jax.run.show_rows import show_rows
    from rcsd_jax.settings.unpack import settings_of

    console = Console()
    for name, stage in keys.stages_of(config):
        with stage.unlocked():
            stage.data.path = argv[1] if len(argv) > 1 else stage.data.path
            stage.model.path = _MODEL.value or stage.model.path
        settings = settings_of(stage)
        if not settings.data.path:
            raise UserError("no file given", field="FILE", remedy="python -m rcsd_jax.data FILE.jsonl")
        if name:
            console.print(f"stage {name}", style="bold")
        tokenizer = load_tokenizer(fetched(settings.model.path)) if settings.model.path else None
        show_rows(settings, tokenizer, console, as_run=_CONFIG.value is not None, count=_ROWS.value)


if __name__ == "__main__":
    run_program(main, "rcsd_jax.data", __doc__ or "")
