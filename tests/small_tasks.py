"""What worker processes do in tests. They import this module, so it imports little."""

import os
import time

from experiments import workers
from rcsd_jax.host.errors import UserError


def work(task, console, stop):
    if task.name == "bad":
        raise UserError("it is bad", remedy="do better")
    if task.name == "slow":
        time.sleep(1)
    if task.name == "killed":
        os._exit(7)
    task.place.write_text(f"{len(workers.usable_cores())}")


def nothing():
    pass
