"""What to use, what it costs, and what to try next: from findings to decisions."""
