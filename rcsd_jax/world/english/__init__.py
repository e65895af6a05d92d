"""Worded problems in English: a task for small language models, with programs that grade it. `python -m` writes it as JSONL files."""
