"""Records to tables: one row per run, and one per rank, step and phase."""
