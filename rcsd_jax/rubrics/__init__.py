"""Rubrics: what they are, reading them from what models write, scoring with them, and the variants of the ablations."""
