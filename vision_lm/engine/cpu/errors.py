"""Why the CPU kernels cannot be used here; torch decodes instead."""


class CpuKernelError(Exception):
    """One line that says what is missing."""
