"""Tests, one file per room of the package."""
