"""Decodes and crops images and turns them into model input."""
