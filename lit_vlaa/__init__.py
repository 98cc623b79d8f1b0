"""Train reasoning vision-language models with SFT and GRPO on PyTorch Lightning."""
