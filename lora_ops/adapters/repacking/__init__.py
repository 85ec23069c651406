"""From one program's packing of projections to another's: the plan, rows, and joined layers."""
