"""The six-step data construction (paper, section on data): metadata, caption, distil, rewrite, verify, curate."""
