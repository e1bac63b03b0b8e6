"""A pass over tiles of similarities: its loops, and what they keep of a tile."""
