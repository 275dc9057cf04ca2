"""Nothing of it is needed to read schemas."""
