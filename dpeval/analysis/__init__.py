"""From records to a frame, figures and words. Imports no torch."""
