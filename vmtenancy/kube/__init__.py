"""The only Kubernetes client code: requests, watches, cache, executor, leader election."""
