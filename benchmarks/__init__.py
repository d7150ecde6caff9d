"""Speed and memory against stated rivals, as ratios measured in one run: `python -m benchmarks`."""
