"""What runs inside a scheduler's job."""
