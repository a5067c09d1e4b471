"""Submitting a sweep's jobs, so that every job that a scheduler accepts is in the manifest."""
