"""What the entry points call: the Hydra application, exit statuses, the end of a sweep."""
