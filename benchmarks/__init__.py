"""Speed, memory and precision, as ratios of things run in turn: `make benchmark`."""
