"""Corrected searches, and the numbers that say how good they are."""
