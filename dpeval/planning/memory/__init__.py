"""The memory that a rank will need, counted before it runs, and what it may use."""
