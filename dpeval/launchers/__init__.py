"""Hydra launchers: how the runs of a sweep reach the machines that carry them out."""
