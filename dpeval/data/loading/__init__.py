"""What feeds a rank in every step: samplers, readers and loaders."""
