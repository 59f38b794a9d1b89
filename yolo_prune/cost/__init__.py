"""Cost of a set of widths: multiply-adds, parameters, bytes, latency."""
