"""RCSD under other rubrics: ground truth, learned, untrained writer, generic, noisy, random, reduced.

    python -m experiments.rubrics [--seeds=5] [--workdir=runs/experiments] [--quick]

Whether Stage I is needed is the comparison of "RCSD", whose rubrics the trained model wrote, with "untrained writer".
"""

from experiments import tables

ARMS = ("rcsd_true", "rcsd", "rcsd_untrained", "rcsd_generic", "rcsd_noisy", "rcsd_random", "rcsd_reduced")
PUBLISHED = {
    "rcsd": 70.6, "rcsd_untrained": 69.9, "rcsd_generic": 69.9, "rcsd_noisy": 69.9, "rcsd_random": 70.0, "rcsd_reduced": 70.2
}  # fmt: skip

if __name__ == "__main__":
    tables.compare(
        "rubrics", "Rubrics", ARMS, PUBLISHED, "the paper's ablation", description=__doc__,
        quick=("rcsd_true", "rcsd", "rcsd_random"),
    )  # fmt: skip
