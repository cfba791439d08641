"""The only caller of Helm: a chart and values in, Kubernetes objects out."""

from vmtenancy.helm.chart import Chart, find_helm, render_chart

__all__ = ["Chart", "find_helm", "render_chart"]
