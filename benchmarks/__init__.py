"""Speed of rollouts and training steps on this machine."""
