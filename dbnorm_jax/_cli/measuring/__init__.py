"""The numbers behind a table, a page or a list of hubs. No printing, no files."""
