"""What the kernel and the drivers report about the machine."""
