"""Where a network runs: runtimes, latency, exports, benchmarks."""
