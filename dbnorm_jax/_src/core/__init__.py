"""Types, checks, numerics and similarities: what all other wings stand on."""
