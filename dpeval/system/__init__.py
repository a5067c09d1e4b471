"""The machine as the kernel and the drivers show it."""
