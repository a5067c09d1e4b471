"""Statistics of step series, as pure functions: steady state, intervals, diagnostics."""
