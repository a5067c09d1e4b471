"""OAR: its commands, its states, and the scripts that it runs."""
