"""Instruments inside a rank: phase clock, step buffer, stop decision, reference work."""
