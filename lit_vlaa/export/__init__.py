"""`lit-vlaa export`: a trained policy in the Hub's layout, for transformers, vLLM and VLMEvalKit."""
