"""The agent of a node: looks at its GPUs, publishes one `GpuNode`, and tells Prometheus how they do."""

from __future__ import annotations

from typing import Final

METRICS_PORT: Final = 9400
