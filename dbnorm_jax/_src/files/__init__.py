"""State in files: written whole or not at all, checked, never executed."""
