"""The prompts of these rows: short, because a small model attends to the form more than to what is asked of it."""

from __future__ import annotations

from typing import Any

from rcsd_jax.roles.contexts import ENGLISH

PROMPTS: dict[str, Any] = ENGLISH | {
    "rubric_style": "strings",
    "headings": ENGLISH["headings"] | {"rubric": "Criteria:"},
    "solve": {"definition": "", "request": ""},
    "write_rubric": {"definition": "", "request": "Write the criteria."},
}
"""The worked examples of `rows` show a rubric in this form, so that the model knows what to do with one."""
