"""Smaller SFT sets: which rows of a data file to keep (`lit-vlaa data select`)."""
