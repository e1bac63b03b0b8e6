"""The choice of a correction by held-out pairs of the banks."""
