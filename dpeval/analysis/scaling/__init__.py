"""What the runs come to: speed-up, efficiency, laws, best configuration, comparison, claims."""
