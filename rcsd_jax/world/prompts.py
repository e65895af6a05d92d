"""The embedded world's prompt strings, in its vocabulary; the base model read its documents in exactly this form."""

from __future__ import annotations

from typing import Any

PROMPTS: dict[str, Any] = {
    "rubric_style": "strings",
    "headings": {
        "reference": "reference :",
        "answer": "answer :",
        "rubric": "rubric :",
        "success": "reference :",
        "feedback": "rubric :",
    },
    "solve": {"definition": "", "request": "solve"},
    "write_rubric": {"definition": "", "request": "write rubric"},
    "reason": {"request": "write reason", "transition": ""},
}
