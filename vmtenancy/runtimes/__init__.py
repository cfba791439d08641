"""The two runtimes behind one interface: KubeVirt for GpuVMs, vCluster for VirtualClusters."""
