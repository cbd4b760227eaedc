"""Decoding on a CPU by kernels in C++, compiled for the machine at first use."""
