"""Tasks on splits, statistics of comparisons, controls, probes, separation, maps."""
