"""What NVML and AMD SMI report about GPUs."""
