"""Rollouts from vLLM servers: experimental, never run against a real vLLM or on a GPU.

What is sent and expected follows the sources of vLLM 0.33.0 (`READ_VERSION`). Nothing of vLLM is imported.
"""

READ_VERSION = "0.33.0"
"""The vLLM whose sources this was written after; earlier ones lack what is asked of them."""
