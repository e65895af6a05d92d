"""RCSD under other divergences, supports, clips and teachers.

python -m experiments.divergences [--seeds=5] [--workdir=runs/experiments] [--quick]
"""

from experiments import tables

ARMS = (
    "rcsd", "rcsd_jsd", "rcsd_reverse", "rcsd_top_k", "rcsd_entry_clip", "rcsd_token_clip", "rcsd_sampled",
    "rcsd_guided_0.5", "rcsd_guided_1", "rcsd_weighted_0.5", "rcsd_weighted_1",
)  # fmt: skip
PUBLISHED = {"rcsd": 70.6, "rcsd_jsd": 69.6, "rcsd_reverse": 69.9}

if __name__ == "__main__":
    tables.compare(
        "divergences", "Divergences", ARMS, PUBLISHED, "the paper's ablation", description=__doc__,
        quick=("rcsd", "rcsd_reverse"),
    )  # fmt: skip
