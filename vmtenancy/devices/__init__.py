"""The only NVML and sysfs code: reads what GPUs a node has, and makes one status of it.

Light on purpose: what is imported here lives in every node's agent, so no pydantic, numpy or Kubernetes client.
"""
