"""Import tables of other programs: text to rows, rows to runs, runs to records."""
