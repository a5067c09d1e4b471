"""Pure functions of series: steady state, intervals, throughput, diagnostics."""
