"""The `dbnorm` command: reading files, the embedded demo, evaluation, tables, plots."""
