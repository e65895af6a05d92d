"""Timings and memory of single parts."""
