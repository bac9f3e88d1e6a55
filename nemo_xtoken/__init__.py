"""Cross-tokenizer distillation for NeMo and Megatron (X-Token, arXiv 2605.21699)."""

__version__ = "0.1.0"
