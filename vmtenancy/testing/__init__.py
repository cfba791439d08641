"""Real control planes, GPU fleets and node stand-ins for tests: see ``vmtenancy.testing.plugin``."""
