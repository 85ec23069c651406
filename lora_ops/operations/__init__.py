"""What is done: each operation plans from headers, then computes one weight at a time."""
