"""The paper's six benchmarks, a generic one, and what it takes to add another."""
