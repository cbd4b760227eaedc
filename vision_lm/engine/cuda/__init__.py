"""Phi's decoding steps in CUDA C++, compiled at first use."""
