"""Evaluation: graders of single texts, and the table of roles, splits and sampling modes."""
