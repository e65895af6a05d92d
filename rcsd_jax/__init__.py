"""Rubric-conditioned self-distillation (RCSD, arXiv 2606.19327) in JAX.

The numerics (`losses`, `models`, `sampling`) stand alone and can be imported one by one; `contexts`, `rubrics` and `data`
prepare what the two roles see; `methods` and `train` compose them; `main` reads flags.
"""

__version__ = "0.1.0"  # `setup.py` reads it from here
