"""Side-by-side benchmarks: `make bench`, and docs/performance.md."""
