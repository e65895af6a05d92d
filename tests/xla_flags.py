"""The flags of XLA under which the tests run.

Tests compile much and compute little. So XLA optimizes nothing, and its older emitters of fusions take the place of its MLIR
emitters, which are three quarters of a train step's compilation. Users compile otherwise, and so does the README's first command,
which `.ci/run` executes: both stages, their evaluation and the report. An XLA without one of these flags says so and ends: leave
the flag out then.
"""

FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def with_devices(count: int) -> str:
    """The flags of a process that has `count` CPU devices."""
    return f"{FLAGS} --xla_force_host_platform_device_count={count}"
