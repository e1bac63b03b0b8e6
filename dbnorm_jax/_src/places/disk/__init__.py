"""Passes over files: rows read in blocks, fits that outlive a process."""
