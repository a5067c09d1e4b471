"""One module per scheduler, a small core and the registry."""
