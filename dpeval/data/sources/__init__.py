"""Where data comes from: found, downloaded or generated once, before any rank starts."""
