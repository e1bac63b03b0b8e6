"""Where a pass runs: over the devices of a mesh, or over files."""
