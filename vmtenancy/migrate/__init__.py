"""Machines of other platforms become GpuVMs: readers, one neutral model, one writer."""
