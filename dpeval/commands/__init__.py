"""What the entry points call: the Hydra application, exit codes for errors, the end of a sweep."""
