"""Import other programs' tables: text to rows, rows to runs, runs to records."""
