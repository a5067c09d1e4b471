"""Configuration and machine to what every rank does and needs; starts nothing."""
