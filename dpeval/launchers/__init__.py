"""Hydra launchers: how the runs of a sweep reach the machines that execute them."""
