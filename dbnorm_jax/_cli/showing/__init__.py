"""What is measured as tables, pages, pictures and files."""
