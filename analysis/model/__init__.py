"""Memory of N guests: fitted, forecast, scored against what was measured afterwards; capacity runs."""
