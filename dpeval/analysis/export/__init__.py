"""Records as runs of MLflow, TensorBoard and Weights & Biases."""
