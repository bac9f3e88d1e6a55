"""The Triton programs with their launches and gradients; the only modules that import triton.

An argument of a program that is a tensor is a pointer to its first element.
"""
