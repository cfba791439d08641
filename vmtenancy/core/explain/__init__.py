"""Why a request waits, and the smallest change that would admit it now."""
