"""From a run's outcome to its record on disk."""
