"""What NVML and AMD SMI tell of GPUs."""
