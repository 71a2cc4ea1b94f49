"""Models whose weights are written by hand, so that what an analysis should find in them is known without it."""
