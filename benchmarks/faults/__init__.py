"""A campaign of faults in real sweeps: no record is lost or doubled, nothing hangs or is left."""
