"""The agent of a node: looks at its GPUs, publishes one `GpuNode`, and tells Prometheus how they do."""
