"""Ranks, worker processes, background writers, and what the machine has."""
