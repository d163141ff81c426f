"""A project directory: configuration, manifest, digests, locks, templates."""
