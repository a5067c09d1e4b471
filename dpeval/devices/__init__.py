"""CPU and CUDA behind one small interface."""
