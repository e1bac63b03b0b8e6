"""How long a test waits for a process that it started: long, as others may want the processors."""

HUNG = 1800  # seconds
