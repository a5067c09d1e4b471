"""One module per scheduler, their base class and the registry."""
