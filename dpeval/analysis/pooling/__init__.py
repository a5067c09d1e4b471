"""Runs to configurations: repetitions pooled, with the spread between runs."""
