"""The study of SFT and RL: matched runs, a look at their traces, a report."""
