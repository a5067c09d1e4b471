"""One run on this machine: plan it, start its ranks, supervise them, write its record."""
