"""Scale: strengths written into an adapter."""
