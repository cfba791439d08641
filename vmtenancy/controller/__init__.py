"""The controller process: kopf's life cycle around one allocator loop."""
