"""The environment of a stage, which every part of it receives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax

from rcsd_jax.evaluate.judged_sets import Judges
from rcsd_jax.host.console import Console
from rcsd_jax.host.files import AnyPath
from rcsd_jax.host.preemption import StopRequest
from rcsd_jax.host.trackers import Rows
from rcsd_jax.roles.opened_model import Model
from rcsd_jax.sampling.decoder_sampler import DecoderSampler
from rcsd_jax.sampling.sampler import Sampler
from rcsd_jax.settings.stage import Settings


class Track(Protocol):
    """Logs to the run's trackers; returns at once."""

    def __call__(self, step: int, scalars: Mapping[str, float], rows: Rows = ()) -> None:
        """Logs scalars and a table of completions as of `step`."""
        ...


def _untracked(step: int, scalars: Mapping[str, float], rows: Rows = ()) -> None:
    """Of a run without trackers."""


class Run(NamedTuple):
    """The environment of a stage."""

    config: Settings
    workdir: AnyPath
    mesh: jax.sharding.Mesh
    console: Console
    stop: StopRequest
    name: str
    judges: Judges | None = None  # of `run.judge.judges_of`, if a judge grades something
    track: Track = _untracked  # of `run.tracking.tracked`

    def sampler(self, model: Model, batch_size: int) -> Sampler:
        """The sampler for a model outside the train step, `batch_size` rows at a time, until the run is asked to stop.

        It has no weights yet: `with_weights` gives it weights.
        """
        return DecoderSampler(
            model.decoder,
            None,
            mesh=self.mesh,
            batch_size=batch_size,
            pad_to=self.config.data.pad_to,
            pad_id=model.pad_id,
            draft_tokens=self.config.sampling.draft_tokens,
            stop=lambda: self.stop.raise_if_set("between two batches of completions; results so far are kept"),
        )
