"""What the runs come to: speedup, efficiency, laws, best configuration, comparison, claims."""
