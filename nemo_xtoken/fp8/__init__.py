"""FP8 arithmetic as Transformer Engine's kernels do it, in torch on any device; no process groups, no framework."""
