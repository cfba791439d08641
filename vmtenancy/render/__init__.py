"""VM templates: a bounded, sandboxed text language, the catalog, and the policy on what comes out."""
