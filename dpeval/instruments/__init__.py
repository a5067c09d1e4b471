"""What measures inside a rank: marks, shared memory, the decision to stop."""
