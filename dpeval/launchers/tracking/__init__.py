"""What a submitted sweep leaves on disk and what is read from it: status, waiting, resuming."""
