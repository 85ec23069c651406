"""What an adapter is: its layers, formats and names, strengths and metadata."""
