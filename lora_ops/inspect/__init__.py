"""What something is: of a file, of an adapter against checkpoints, of two adapters or two checkpoints, and what is wrong with one."""
