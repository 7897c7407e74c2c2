"""Two evaluations of the same rows side by side: comparison, page of mismatches, plots."""
