"""Small helpers that know nothing of dpeval's subject."""
