"""Helpers that know nothing of measuring: files, units, tables, frozen values, imports."""
