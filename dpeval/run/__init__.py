"""One run on this machine: prepared, started, watched, ended, recorded."""
