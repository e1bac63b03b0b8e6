"""How good corrections are, one question per file."""
