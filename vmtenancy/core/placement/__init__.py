"""Where a request lands: feasibility and best fit over the fleet's arrays."""
