"""The files of a submitted sweep, and what uses them: status, waiting, resuming."""
