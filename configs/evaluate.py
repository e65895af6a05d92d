"""Evaluates a model or a LoRA adapter on benchmarks; `configs/evaluate.py:gpqa_diamond,piqa` chooses some of them.

    python -m rcsd_jax.evaluate --config=configs/evaluate.py --config.model.path=DIR

The default is the paper's benchmarks with exact answers. "rar", "researchqa", "rubrichub" and "healthbench" need a judge
(`judge.model` at an endpoint, or `judge.checkpoint`). Each benchmark is read from the place where it is published, or from a path:
`--config.eval.benchmarks.piqa=FILE.jsonl` (or FILE.parquet, tfds:NAME#SPLIT, hub:OWNER/NAME#SPLIT).

The model thinks, for up to 32,768 tokens. With "non_thinking", as in `configs/evaluate.py:piqa,non_thinking`, it does not, and an answer
has up to 4,096.
"""

from ml_collections import ConfigDict

from rcsd_jax.evaluate.benchmarks import BENCHMARKS
from rcsd_jax.settings import keys, thinking

EXACT = "gpqa_diamond,scibench,piqa,medmcqa,pubmedqa"
VARIANTS = tuple(BENCHMARKS)  # several are joined by commas


def get_config(benchmarks: str = EXACT) -> ConfigDict:
    config = keys.stage()
    config.eval.update(roles=("base",), samples=4, greedy=(False,), count=10**6, temperature=0.6)
    who_thinks, names = thinking.split([name for name in (benchmarks or "").split(",") if name])
    thinking.apply(config, who_thinks)
    thinking.give_evaluation_room(config)
    for name in names or EXACT.split(","):
        if name not in config.eval.benchmarks:
            raise ValueError(f"unknown benchmark {name!r}: use some of {', '.join(config.eval.benchmarks)}")
        config.eval.benchmarks[name] = ""
    config.data.max_student_prompt = 4096
    config.sampling.update(top_k=20, top_p=0.95)
    return config
