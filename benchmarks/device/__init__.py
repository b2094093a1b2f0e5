"""The sections of `benchmarks.gpu`, one noun a file."""
