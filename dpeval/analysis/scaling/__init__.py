"""Results of the runs: speedup, efficiency, laws, best configuration, comparison, claims."""
