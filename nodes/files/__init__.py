"""From files to sockets and back, and stacks of other packs."""
