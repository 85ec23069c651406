"""What a checkpoint is: its parameters by canonical names, pairs of them, their differences."""
