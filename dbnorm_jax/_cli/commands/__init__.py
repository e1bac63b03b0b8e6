"""The commands: their options, and one file for what each does."""
