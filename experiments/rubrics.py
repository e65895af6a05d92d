"""RCSD under other rubrics: ground truth, learned, of untrained writers, generic, noisy, random, reduced.

    python -m experiments.rubrics [--seeds=5] [--workdir=runs/experiments] [--quick]

To see whether Stage I is needed, compare "RCSD", whose rubrics the trained model wrote, with "untrained writer" and
"untrained larger writer". The larger writer's base is made first if it is missing.
"""

from experiments import tables

ARMS = (
    "rcsd_true", "rcsd", "rcsd_untrained", "rcsd_untrained_large", "rcsd_generic", "rcsd_noisy", "rcsd_random", "rcsd_reduced"
)  # fmt: skip
PUBLISHED = {
    "rcsd": 70.6, "rcsd_untrained": 69.9, "rcsd_untrained_large": 70.7, "rcsd_generic": 69.9, "rcsd_noisy": 69.9, "rcsd_random": 70.0,
    "rcsd_reduced": 70.2,
}  # fmt: skip

if __name__ == "__main__":
    tables.compare(
        "rubrics", "Rubrics", ARMS, PUBLISHED, "the paper's ablation", description=__doc__,
        quick=("rcsd_true", "rcsd"),
    )  # fmt: skip
