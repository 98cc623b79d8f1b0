"""What `callbacks.BenchmarkEvaluation` is made of: answers on disk, generation, scoring, exact sums, the report."""
