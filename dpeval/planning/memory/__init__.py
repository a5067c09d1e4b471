"""The memory that a rank will need, counted before it runs, and the memory that it may use."""
