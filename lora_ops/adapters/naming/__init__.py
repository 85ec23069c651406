"""Names of modules: whose they are, and what each is called by others."""
