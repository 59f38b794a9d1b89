"""What a set of widths costs: multiply-adds, parameters, bytes, latency."""
