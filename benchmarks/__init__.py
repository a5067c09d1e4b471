"""Measurements of dpeval itself."""
