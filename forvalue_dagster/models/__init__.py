"""Load, adapt, fingerprint and warm up models."""
