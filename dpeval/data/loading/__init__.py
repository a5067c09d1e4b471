"""Loads a rank's batches: samplers, readers and loaders."""
