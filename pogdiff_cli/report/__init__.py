"""Numbers and pictures made readable: one HTML file, tables, contact sheets."""
