"""The same distillation inside Megatron-Bridge's own `pretrain`, with models from Hugging Face.

Imports nothing by itself: `cpu_device.install()` has to come before everything else where the device is the CPU. Then:

    from nemo_xtoken.integrations.bridge.distillation import extend, pretrain

`extend` makes a distillation of an existing `ConfigContainer`, `recipes` has complete ones.
"""
