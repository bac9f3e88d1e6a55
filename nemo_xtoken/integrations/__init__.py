"""Homes of the loss: megatron-core alone, NeMo, Megatron-Bridge. Nothing else in the package imports them."""
