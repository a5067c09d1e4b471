"""Faults of schedulers: stubs of SLURM and OAR whose jobs are files, and what runs these jobs."""
