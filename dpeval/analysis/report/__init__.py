"""Findings as text, terminal tables, ``summary.json`` and an HTML report."""
