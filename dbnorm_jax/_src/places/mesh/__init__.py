"""Passes over a mesh: the layout of rows, what devices do and exchange."""
