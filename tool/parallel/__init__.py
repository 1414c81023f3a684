"""Ranks, worker processes, background writers, and properties of the machine."""
