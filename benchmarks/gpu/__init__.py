"""The GPU campaign: every claim about GPUs, held against a truth that is known or counted."""
