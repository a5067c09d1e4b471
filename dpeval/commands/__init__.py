"""What the entry points call: the Hydra application, errors to exit codes, the end of a sweep."""
